"""Trained networks, from a run of this project, a published model directory, or an exported file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from models.create import create_model
from models.io.files import find_checkpoint, load_config, named_checkpoint, read_checkpoint, read_safetensors
from models.io.published import StoredTensor, published_tensors
from models.layers import ScoreNetwork
from utils.errors import InputError

WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_pretrained(
    run_dir: str | Path, ckpt: int = -1, device: torch.device | str = "cpu"
) -> tuple[ScoreNetwork, DictConfig]:
    """A trained network with its EMA weights, in evaluation mode, and the configuration of its run.

    Args:
        run_dir: folder with ``.hydra/config.yaml`` and ``checkpoints/checkpoint_*.pth``, of this project or of the
            published code, whose configuration comes back in our keys; or one of these checkpoints; or a
            ``.safetensors`` file of models.export.
        ckpt: number of the checkpoint; -1 for the highest.
        device: where the network goes.

    Raises:
        InputError: naming the file, if one is missing, damaged, or does not fit the configuration; every tensor of the
            network must be there, once, in its shape, and finite.
    """
    run_dir, ckpt = named_checkpoint(run_dir, ckpt)
    if run_dir.suffix == ".safetensors" and run_dir.is_file():
        path = run_dir
        cfg, averages = read_safetensors(path)
        net = build_shapes(cfg, path)
        shapes = net.state_dict()
        check_tensors(averages, shapes, path)
        for name, tensor in averages.items():
            check_finite(tensor, name, path)
        averages = {name: tensor.to(shapes[name].dtype) for name, tensor in averages.items()}
    else:
        cfg = load_config(run_dir)
        net = build_shapes(cfg, run_dir / ".hydra/config.yaml")
        path = find_checkpoint(run_dir, ckpt)
        checkpoint = read_checkpoint(path)
        _check_size(net, path)
        averages = read_weights(net, cfg, checkpoint, path).averages
    return _finish(net, cfg, averages, device), cfg


def load_denoiser(run_dir: str | Path, device: torch.device | str = "cpu") -> tuple[ScoreNetwork, DictConfig, bool]:
    """A network to denoise with: the last of a run, as ``load_pretrained`` gives it, or the published denoiser.

    Args:
        run_dir: a run, or the published denoiser, whose one file is ``checkpoints/checkpoint.pth`` and whose network
            returns the noise of an image; its weights are those trained, not their average.
        device: where the network goes.

    Returns:
        The network, its configuration, and whether it is the published denoiser.

    Raises:
        InputError: naming the file, if one is missing, damaged, or does not fit the configuration.
    """
    path = Path(run_dir) / "checkpoints/checkpoint.pth"
    if not path.is_file():
        return *load_pretrained(run_dir, device=device), False
    cfg = load_config(Path(run_dir))
    net = build_shapes(cfg, Path(run_dir) / ".hydra/config.yaml")
    checkpoint = read_checkpoint(path)
    _check_size(net, path)
    weights = read_weights(net, cfg, checkpoint, path, averaged=False).model
    return _finish(net, cfg, weights, device), cfg, True


def _finish(
    net: ScoreNetwork, cfg: DictConfig, weights: Mapping[str, Tensor], device: torch.device | str
) -> ScoreNetwork:
    """Give ``net``, of shapes, its ``weights``, and make it ready to evaluate on ``device``."""
    if any(name not in weights for name, _ in net.named_buffers()):  # which are computed, and not stored
        net = create_model(cfg.model, cfg.data, cfg.sde)
    net.load_state_dict(weights, assign=True)
    return net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def build_shapes(cfg: DictConfig, path: Path) -> ScoreNetwork:
    """The network that a loaded configuration describes, without memory for its weights.

    Raises:
        InputError: naming ``path``, if the configuration does not describe a network.
    """
    try:
        with torch.device("meta"):
            return create_model(cfg.model, cfg.data, cfg.sde)
    except (InputError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def _check_size(net: nn.Module, path: Path) -> None:
    """Raise InputError if a network is larger than its file: tensors can claim more numbers than they store."""
    size = sum(map(Tensor.numel, net.parameters()))
    if size > path.stat().st_size:
        raise InputError(f"{path} is too small for the {size:,} parameters of the network of its configuration")


@dataclass(frozen=True)
class Weights:
    """The weights in a checkpoint, {our name: tensor in our layout, of the type that the network has, float32}.

    Attributes:
        model: as trained.
        averages: the EMA weights, and as trained what has no average.
        published: whether the checkpoint is in the published layout.
    """

    model: dict[str, Tensor]
    averages: dict[str, Tensor]
    published: bool


def read_weights(
    net: nn.Module, cfg: DictConfig, checkpoint: Mapping[str, Any], path: Path, averaged: bool = True
) -> Weights:
    """The weights of ``net`` out of a checkpoint in our layout or the published one.

    Args:
        net: the network, of which only names, shapes and what is trained matter.
        cfg: its configuration.
        checkpoint: as ``read_checkpoint`` returns it, with ``model`` and ``ema.shadow_params``.
        path: of the checkpoint, for errors.
        averaged: whether there are averages; without, those of the result are the weights as trained.

    Raises:
        InputError: naming the tensor that is missing, too many or misshapen, or holds values that are not finite.
    """
    parameters = net.state_dict(keep_vars=True)  # and buffers, if a network has some
    try:
        stored, shadows = checkpoint["model"], checkpoint["ema"]["shadow_params"] if averaged else []
        table = published_tensors(net, cfg.sde)
        published = len(stored.keys() & parameters.keys()) < len(stored.keys() & {entry.name for entry in table})
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint of a run: {type(error).__name__}: {error}") from error
    if not published:
        table = [StoredTensor(name, ours=name) for name in parameters]

    weights = [(entry, entry.ours) for entry in table if entry.ours is not None]
    constants = {entry.name: entry.constant for entry in table if entry.constant is not None}
    shapes = {entry.name: entry.convert(parameters[ours]) for entry, ours in weights}
    check_tensors(stored, shapes | constants, path)
    for name, constant in constants.items():
        # sigmas is a record, which the network with Fourier features does not read
        if name != "sigmas" and not torch.equal(stored[name].double(), constant.double()):
            raise InputError(f"{path}: {name} does not hold the values of this network")

    trained = [entry for entry, ours in weights if parameters[ours].requires_grad] if averaged else []
    if not isinstance(shadows, Sequence) or len(shadows) != len(trained):
        found = len(shadows) if isinstance(shadows, Sequence) else type(shadows).__name__
        raise InputError(f"{path}: ema.shadow_params holds {found} tensors, the network has {len(trained)} to average")
    averages = {entry.name: shadow for entry, shadow in zip(trained, shadows, strict=True)}
    for name, average in averages.items():
        check_tensor(average, shapes[name], f"the average of {name}", path)
        check_finite(average, f"the average of {name}", path)
    for name in shapes:
        check_finite(stored[name], name, path)

    def in_our_layout(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        converted = {ours: entry.convert(tensors[entry.name]) for entry, ours in weights}
        return {name: tensor.detach().to(parameters[name].dtype).contiguous() for name, tensor in converted.items()}

    return Weights(in_our_layout(stored), in_our_layout({**stored, **averages}), published)


def check_tensors(stored: Mapping[str, Any], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError, naming the tensor, unless ``stored`` has just the names of ``expected`` and their shapes."""
    for name, tensor in expected.items():
        if name not in stored:
            raise InputError(f"{path} has no {name}, which the network of its configuration has")
        check_tensor(stored[name], tensor, name, path)
    for name in stored:
        if name not in expected:
            raise InputError(f"{path} has {name}, which the network of its configuration does not have")


def check_tensor(tensor: Any, expected: Tensor, name: str, path: Path) -> None:
    """Raise InputError unless ``tensor`` has the shape of ``expected``, and its type or one of ``WEIGHT_TYPES``."""
    plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested and tensor.device.type == "cpu"
    if not plain or tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        raise InputError(f"{path}: {name} is not a dense tensor of real numbers")
    if tensor.dtype not in (*WEIGHT_TYPES, expected.dtype):
        found, *known = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *WEIGHT_TYPES))
        raise InputError(f"{path}: {name} is of type {found}, weights are {', '.join(known)}")
    if tensor.shape != expected.shape:
        raise InputError(f"{path}: {name} is {tuple(tensor.shape)}, the network wants {tuple(expected.shape)}")


def check_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raise InputError, naming the tensor, if it holds infinities or what is no number, or would as float32."""
    if not torch.isfinite(tensor.detach().to(torch.float32)).all():
        raise InputError(f"{path}: {name} holds values that are not finite")

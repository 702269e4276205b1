"""Loading trained models from a run of this code, a published model directory, or an exported file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from datasets.options import MAX_IMAGE_SIZE
from models.create import create_model
from models.io.checkpoint import read_checkpoint
from models.io.config import load_config
from models.io.ema_snapshots import check_belongs, find_snapshots, reconstruct
from models.io.hub import local_path
from models.io.run_files import find_checkpoint, named_checkpoint
from models.io.safetensors import read_safetensors
from models.io.weights import Weights, check_finite, check_tensors, read_weights
from models.layers import to_channels_last
from models.score_model import ScoreModel
from utils.ema_options import CheckpointNumber, WeightsName, check_weights
from utils.errors import InputError


def load_pretrained(
    run_dir: str | Path,
    ckpt: CheckpointNumber = -1,
    device: torch.device | str = "cpu",
    ema: float | None = None,
    weights: WeightsName = "ema",
    max_image_size: int = MAX_IMAGE_SIZE,
) -> tuple[ScoreModel, DictConfig]:
    """Load a trained model.

    Args:
        run_dir: directory with ``.hydra/config.yaml`` and ``checkpoints/checkpoint_*.pth`` of this code or the
            published one; or one of these checkpoints; or a ``.safetensors`` file or directory of models.export; or
            hf://USER/NAME for a model with such files on the Hugging Face Hub, see ``local_path``.
        ckpt: number of the checkpoint; -1 for the highest, ``best`` for that with the lowest held-out loss.
        device: device of the model.
        ema: relative length, in [0.01, 0.28], of a power-function average at the step of the checkpoint, which is
            reconstructed from the snapshots of a run with ``training.ema_snapshot_freq``; None for the average in the
            checkpoint.
        weights: ``ema`` for averaged weights, ``model`` for those of the checkpoint without averaging.
        max_image_size: samples with more values than a colour image of this height and width are refused.

    Returns:
        The model with these weights, in evaluation mode, net(x, sigma, labels=None) -> score; and the configuration
        of its run, in the keys of this code.

    Raises:
        InputError: naming the file, if one is missing, damaged, or does not fit the configuration: the file must have
            exactly the tensors of the network, in their shapes and with finite values; or naming ``eval.ema`` or
            ``eval.weights``, if there are no such weights.
    """
    check_weights(ema, weights)
    run_dir, ckpt = named_checkpoint(run_dir, ckpt)
    if run_dir.suffix == ".safetensors" and run_dir.is_file():
        path = run_dir
        if ema is not None or weights != "ema":
            key = "eval.weights=model" if ema is None else f"eval.ema={ema}"
            raise InputError(f"{path} has only the averages that it was exported with: {key} needs the run")
        cfg, averages = read_safetensors(path, max_image_size)
        net = build_shapes(cfg, path)
        shapes = net.network.state_dict()
        check_tensors(averages, shapes, path)
        for name, tensor in averages.items():
            check_finite(tensor, name, path)
        averages = {name: tensor.to(shapes[name].dtype) for name, tensor in averages.items()}
    else:
        cfg = load_config(run_dir, max_image_size)
        net = build_shapes(cfg, run_dir / ".hydra/config.yaml")
        path = find_checkpoint(run_dir, ckpt)
        checkpoint = read_checkpoint(path)
        _check_size(net, path)
        stored = read_weights(net.network, cfg, checkpoint, path)
        if weights == "model":
            averages = stored.model
        else:
            averages = average_weights(net.network, run_dir, checkpoint, path, stored, ema)
    return _finish(net, cfg, averages, device), cfg


def average_weights(
    net: nn.Module, run_dir: Path, checkpoint: Mapping[str, Any], path: Path, stored: Weights, ema: float | None
) -> dict[str, Tensor]:
    """Return averaged weights: those of a checkpoint, or for a length ``ema`` those reconstructed from snapshots.

    Args:
        net: network; only names, shapes and types of its tensors, and which of them are trained, are used.
        run_dir: directory of the run.
        checkpoint: contents of the checkpoint.
        path: path of the checkpoint, for error messages.
        stored: weights in the checkpoint.
        ema: relative length of the average, or None.

    Raises:
        InputError: if there are no snapshots for this checkpoint, or one is damaged or of another network.
    """
    if ema is None:
        return stored.averages
    shapes = {name: p for name, p in net.named_parameters() if p.requires_grad}
    infos = find_snapshots(run_dir, checkpoint.get("step"), path)
    check_belongs(run_dir, infos[-1], checkpoint["model"], path)
    averages = reconstruct(run_dir, infos, ema, shapes)
    return stored.model | {name: average.to(shapes[name].dtype) for name, average in averages.items()}


def load_denoiser(
    run_dir: str | Path, device: torch.device | str = "cpu", max_image_size: int = MAX_IMAGE_SIZE
) -> tuple[ScoreModel, DictConfig, bool]:
    """Load a model to denoise with: the newest checkpoint of a run, or the published denoiser.

    The published denoiser is one file, ``checkpoints/checkpoint.pth``. Its network returns the noise of an image, and
    its weights are those trained, not their average.

    Args:
        run_dir: directory of a run or of the published denoiser.
        device: device of the model.
        max_image_size: see ``load_pretrained``.

    Returns:
        The model, its configuration, and whether it is the published denoiser.

    Raises:
        InputError: naming the file, if one is missing, damaged, or does not fit the configuration.
    """
    run_dir = local_path(run_dir)
    path = run_dir / "checkpoints/checkpoint.pth"
    if not path.is_file():
        return *load_pretrained(run_dir, device=device, max_image_size=max_image_size), False
    cfg = load_config(run_dir, max_image_size)
    net = build_shapes(cfg, run_dir / ".hydra/config.yaml")
    checkpoint = read_checkpoint(path)
    _check_size(net, path)
    weights = read_weights(net.network, cfg, checkpoint, path, averaged=False).model
    return _finish(net, cfg, weights, device), cfg, True


def _finish(net: ScoreModel, cfg: DictConfig, weights: Mapping[str, Tensor], device: torch.device | str) -> ScoreModel:
    """Put ``weights`` into ``net``, which is on the meta device, and prepare it for evaluation on ``device``."""
    if any(name not in weights for name, _ in net.network.named_buffers()):  # computed at construction, not stored
        net = create_model(cfg.model, cfg.data, cfg.sde)
    net.network.load_state_dict(weights, assign=True)
    net.to(device)
    to_channels_last(net)
    return net.eval().requires_grad_(False)


def build_shapes(cfg: DictConfig, path: Path) -> ScoreModel:
    """Create the model of a loaded configuration on the meta device, without memory for its weights.

    Raises:
        InputError: naming ``path``, if the configuration is not that of a model.
    """
    try:
        with torch.device("meta"):
            return create_model(cfg.model, cfg.data, cfg.sde)
    except (InputError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def _check_size(net: nn.Module, path: Path) -> None:
    """Raise InputError if a network has more parameters than its file has bytes: stored tensors can repeat numbers."""
    size = sum(map(Tensor.numel, net.parameters()))
    if size > path.stat().st_size:
        raise InputError(f"{path} is too small for the {size:,} parameters of the network of its configuration")

"""The weights in a checkpoint, checked one by one against the network of its configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from models.io.published import StoredTensor, published_tensors
from utils.errors import InputError

WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weights:
    """The weights in a checkpoint, by parameter name, in the layout and type of the network's own parameters.

    Attributes:
        model: weights as trained.
        averages: EMA weights; as trained for parameters that have no average.
        published: whether the checkpoint is in the published layout.
    """

    model: dict[str, Tensor]
    averages: dict[str, Tensor]
    published: bool


def read_weights(
    net: nn.Module, cfg: DictConfig, checkpoint: Mapping[str, Any], path: Path, averaged: bool = True
) -> Weights:
    """Convert the weights in a checkpoint, in the layout of this code or the published one, to those of ``net``.

    Args:
        net: network; only names, shapes and types of its tensors, and which of them are trained, are used.
        cfg: configuration of the run.
        checkpoint: contents of the checkpoint, with ``model`` and ``ema.shadow_params``.
        path: path of the checkpoint, for error messages.
        averaged: whether the checkpoint has EMA weights; if not, ``averages`` are the weights as trained.

    Raises:
        InputError: naming the tensor that is missing, unexpected, of the wrong shape, or not finite.
    """
    parameters = net.state_dict(keep_vars=True)  # with buffers
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
        # sigmas is not compared: the network with Fourier features does not use it
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
    """Raise InputError, naming the tensor, unless ``stored`` has exactly the names and shapes of ``expected``."""
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
    """Raise InputError, naming the tensor, if a value is infinite or NaN, or would be in float32."""
    if not torch.isfinite(tensor.detach().to(torch.float32)).all():
        raise InputError(f"{path}: {name} holds values that are not finite")

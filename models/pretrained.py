"""Trained networks from a run directory, which is treated as untrusted data."""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from errors import InputError
from models.create import create_model

REQUIRED = {
    "model": ("name",),
    "data": ("image_size", "num_channels", "classes"),
    "sde": ("sigma_min", "sigma_max", "num_scales"),
}


def load_pretrained(
    run_dir: str | Path, ckpt: int = -1, device: torch.device | str = "cpu"
) -> tuple[nn.Module, DictConfig]:
    """The network of a run with its EMA weights, in evaluation mode, and the configuration of the run.

    Args:
        run_dir: folder with ``.hydra/config.yaml`` and ``checkpoints/checkpoint_*.pth``.
        ckpt: number of the checkpoint; -1 for the highest.
        device: where the network goes.

    Raises:
        InputError: naming the file, if one is missing, damaged, or does not fit the configuration.
    """
    run_dir = Path(run_dir)
    cfg = load_config(run_dir)
    try:
        net = create_model(cfg.model, cfg.data)
    except (InputError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{run_dir / '.hydra/config.yaml'}: {error}") from error
    path = find_checkpoint(run_dir, ckpt)
    checkpoint = read_checkpoint(path)
    try:
        net.load_state_dict(checkpoint["model"])  # what is not trained has no average
        trainable = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        copy_averages(checkpoint["ema"]["shadow_params"], trainable)
    except (InputError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} does not fit the network of its configuration: {reason}") from error
    return net.to(device).eval().requires_grad_(False), cfg


def load_config(run_dir: Path) -> DictConfig:
    """The configuration of a run, as plain values: interpolations are refused, not evaluated.

    Raises:
        InputError: if the file is missing, is not YAML, lacks what every run has, or holds an interpolation.
    """
    path = Path(run_dir) / ".hydra/config.yaml"
    if not path.is_file():
        raise InputError(f"{path} does not exist: {run_dir} is not a run directory")
    try:
        text = path.read_text()
        # OmegaConf's loader, a safe one, reads 1e-2 as a number; unresolved, so that nothing is looked up.
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    for section, keys in REQUIRED.items():
        for key in keys:
            if not isinstance(values, dict) or key not in (values.get(section) or {}):
                raise InputError(f"{path} has no {section}.{key}: it is not the configuration of a run")
    if "${" in text:
        raise InputError(f"{path} holds an interpolation, ${{...}}: write the value itself")
    return OmegaConf.create(values)


def checkpoint_numbers(folder: Path) -> list[int]:
    """The numbers of the files checkpoint_N.pth in ``folder``, rising; other files are ignored."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(m[1]) for m in (re.fullmatch(r"checkpoint_(\d+)\.pth", name) for name in names) if m)


def find_checkpoint(run_dir: Path, ckpt: int = -1) -> Path:
    """Path of checkpoint number ``ckpt`` of a run, or of the highest for -1; other files are ignored.

    Raises:
        InputError: if there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    numbers = checkpoint_numbers(folder)
    if not numbers:
        raise InputError(f"{folder} has no checkpoint_*.pth")
    number = numbers[-1] if ckpt == -1 else ckpt
    if number not in numbers:
        raise InputError(f"{folder} has no checkpoint_{number}.pth: eval.ckpt can be {', '.join(map(str, numbers))}")
    return folder / f"checkpoint_{number}.pth"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU: tensors and plain Python, nothing in it is executed.

    Raises:
        InputError: if the file is missing, damaged, or holds anything else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def copy_averages(shadow_params: Sequence[torch.Tensor], named: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Copy EMA weights into the ``named`` parameters, which are in the same order.

    Raises:
        InputError: if a tensor is missing, too many, or misshapen.
    """
    if len(named) != len(shadow_params):
        raise InputError(f"{len(shadow_params)} EMA tensors for {len(named)} parameters")
    for (name, p), shadow in zip(named, shadow_params, strict=True):
        if p.shape != shadow.shape:
            raise InputError(f"{name} is {tuple(shadow.shape)}, the network wants {tuple(p.shape)}")
        p.data.copy_(shadow)

"""The files of a model directory, which is treated as untrusted data: nothing in it is executed or looked up."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errors import InputError
from models.published import from_published

REQUIRED = {
    "model": ("name",),
    "data": ("image_size", "num_channels"),
    "sde": ("sigma_min", "sigma_max", "num_scales"),
}


def load_config(run_dir: Path) -> DictConfig:
    """The configuration of a run in our keys, as plain values: interpolations are refused, not evaluated.

    Raises:
        InputError: if the file is missing, is not YAML, lacks what every run has, holds an interpolation, or asks for
            what we do not have.
    """
    path = Path(run_dir) / ".hydra/config.yaml"
    if not path.is_file():
        raise InputError(f"{path} does not exist: {run_dir} is not a run directory")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> DictConfig:
    """The configuration in the YAML ``text`` of ``path``; otherwise as ``load_config``."""
    try:
        # OmegaConf's loader, a safe one, reads 1e-2 as a number; unresolved, so that nothing is looked up.
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    for section, keys in REQUIRED.items():
        part = values.get(section) if isinstance(values, dict) else None
        for key in keys:
            if not isinstance(part, dict) or key not in part:
                raise InputError(f"{path} has no {section}.{key}: it is not the configuration of a run")
    if "${" in text:
        raise InputError(f"{path} holds an interpolation, ${{...}}: write the value itself")
    try:
        return OmegaConf.create(from_published(values))
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def checkpoint_numbers(folder: Path) -> list[int]:
    """The numbers of the files checkpoint_N.pth in ``folder``, rising; other files are ignored."""
    names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    matches = (re.fullmatch(r"checkpoint_(0|[1-9][0-9]*)\.pth", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


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


def read_safetensors(path: Path) -> tuple[DictConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a file that ``python -m models.export`` wrote.

    Raises:
        InputError: if it is damaged or has no configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("config")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if text is None:
        raise InputError(f"{path} holds no configuration: it was not written by python -m models.export")
    return parse_config(text, path), tensors

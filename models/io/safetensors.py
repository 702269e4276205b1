"""Exported models: one safetensors file with the EMA weights, and the configuration and a checksum in its metadata."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datasets.options import MAX_IMAGE_SIZE
from models.io.config import parse_config
from utils.errors import InputError

MAX_HEADER_BYTES = 2**21  # enough for 20,000 tensors


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256, in hexadecimal digits, of a configuration and named tensors."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def write_safetensors(path: Path, cfg: DictConfig, tensors: dict[str, Tensor]) -> None:
    """Write tensors, by name, with the configuration ``cfg`` and a checksum of both."""
    text = OmegaConf.to_yaml(cfg)
    save_file(tensors, path, metadata={"config": text, "sha256": digest(text, tensors)})


def read_safetensors(path: Path, max_image_size: int = MAX_IMAGE_SIZE) -> tuple[DictConfig, dict[str, Tensor]]:
    """Read the configuration, see ``load_config``, and the tensors of a file that ``python -m models.export`` wrote.

    Raises:
        InputError: if the file is damaged or has no configuration.
    """
    metadata = read_metadata(path)
    tensors = read_tensors(path)
    text = metadata.get("config")
    if text is None:
        raise InputError(f"{path} holds no configuration: it was not written by python -m models.export")
    if metadata.get("sha256") != digest(text, tensors):
        raise InputError(f"{path} is damaged: its checksum is another")
    return parse_config(text, path, max_image_size), tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; raise InputError if it is damaged or its header is too long."""
    with _opened(path) as file:
        return file.metadata() or {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; raise InputError if it is damaged or its header is too long."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file after a check of the size of its header; convert errors in the context to InputError."""
    try:
        with path.open("rb") as header:
            length = int.from_bytes(header.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise InputError(f"{path} cannot be read: its header has {length:,} bytes, more than {MAX_HEADER_BYTES:,}")
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error

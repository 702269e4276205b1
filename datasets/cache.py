"""Packs: a data set as one file of uint8 pixels, made once from its source files and read through a memory map.

A pack is a safetensors file with ``pixels`` (N, C, H, W) and ``labels`` (N,); other programs can read it too. Its
metadata hold the SHA-256 of both and what the pack was made of.
"""

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.images import ImageDataset
from utils.errors import InputError, printable, writing
from utils.locks import in_turn

log = logging.getLogger(__name__)

HEADER = 4096  # bytes before the pixels: as many as a page, so that the map is aligned

Part = tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]  # pixels (n, C, H, W), labels (n,), (file, reason) left out


def fingerprint(files: Iterable[Path], root: Path, *options: object) -> str:
    """What a pack was made of: the names below ``root``, sizes and times of its source files, and the options."""
    digest = hashlib.sha256(repr(options).encode())
    for path in files:
        try:
            status = os.stat(path)
            told = f"{status.st_size}\0{status.st_mtime_ns}"
        except PermissionError:  # it will be listed as unreadable
            told = ""
        digest.update(f"{path.relative_to(root)}\0{told}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def open_cached(
    path: Path, made_of: str, shape: Sequence[int], total: int, parts: Callable[[], Iterator[Part]], num_classes: int
) -> ImageDataset:
    """The data set in the pack ``path``, which is made first if it is not there or was made of something else.

    Args:
        path: of the pack, NAME.safetensors; NAME.unreadable.txt beside it lists the files that could not be read.
        made_of: the ``fingerprint`` of its source.
        shape: of an image, (C, H, W).
        total: images, those that cannot be read included; for the progress bar.
        parts: the images, some at a time; only called if the pack is to be made.
        num_classes: of the labels.

    Raises:
        InputError: if no image can be read.
        UserError: if the disk does not take it.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    opened = _open_pack(path, made_of, shape)
    if opened is None:
        with in_turn(path.with_name(f".{path.name}.lock"), f"another process is making {path}"):
            opened = _open_pack(path, made_of, shape)
            if opened is None:
                _make_pack(path, made_of, shape, total, parts())
                opened = _open_pack(path, made_of, shape)
    if opened is None:
        raise InputError(f"{path} was changed while it was made: run this again")
    file, pixels, labels, sha256 = opened
    return ImageDataset(pixels, labels, num_classes, fingerprint=sha256, file=file, offset=HEADER)


def _make_pack(path: Path, made_of: str, shape: Sequence[int], total: int, parts: Iterator[Part]) -> None:
    """Write the pack aside and move it into place."""
    temporary = path.with_name(f".{path.name}.tmp")  # of one process at a time
    log.info("packing %d images into %s", total, path)
    try:
        with writing(path), open(temporary, "wb") as file:
            count, unreadable = _write_pack(file, made_of, shape, total, parts)
            _list(unreadable, total, path.with_suffix(".unreadable.txt"))
        if not count:
            reason = f", such as {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else ""
            raise InputError(f"none of the {total} images of {path.stem} can be read{reason}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_pack(
    file: BinaryIO, made_of: str, shape: Sequence[int], total: int, parts: Iterator[Part]
) -> tuple[int, list[tuple[str, str]]]:
    """Write pixels, labels and last the header; returns the number of images and the (file, reason) left out."""
    labels, unreadable, digest = [np.empty(0, np.int64)], [], hashlib.sha256()
    file.seek(HEADER)
    with tqdm(total=total, unit="image", disable=None) as bar:
        for part_pixels, part_labels, bad in parts:
            part_pixels = np.ascontiguousarray(part_pixels)
            file.write(part_pixels.data)
            digest.update(part_pixels.data)
            labels.append(part_labels.astype(np.int64))
            unreadable += bad
            bar.update(len(part_labels) + len(bad))
    all_labels = np.concatenate(labels)
    n = len(all_labels)
    size = n * int(np.prod(shape))
    file.write(all_labels.data)
    digest.update(all_labels.data)
    digest.update(repr((n, *shape)).encode())
    header = {
        "__metadata__": {"made_of": made_of, "sha256": digest.hexdigest()},
        "pixels": {"dtype": "U8", "shape": [n, *shape], "data_offsets": [0, size]},
        "labels": {"dtype": "I64", "shape": [n], "data_offsets": [size, size + 8 * n]},
    }
    file.seek(0)
    file.write((HEADER - 8).to_bytes(8, "little") + json.dumps(header).encode().ljust(HEADER - 8))
    file.flush()
    os.fsync(file.fileno())
    return n, unreadable


def _list(unreadable: list[tuple[str, str]], total: int, path: Path) -> None:
    """Write the files that were left out to ``path``, if there are any, and log the first ones."""
    path.unlink(missing_ok=True)
    if not unreadable:
        return
    unreadable = [(printable(name), printable(reason)) for name, reason in unreadable]
    path.write_text("".join(f"{name}\t{reason}\n" for name, reason in unreadable), encoding="utf-8")
    for name, reason in unreadable[:10]:
        log.warning("%s cannot be read and is left out: %s", name, reason)
    log.warning("%d of %d files left out, listed in %s", len(unreadable), total, path)


def _open_pack(path: Path, made_of: str, shape: Sequence[int]) -> tuple[BinaryIO, Tensor, Tensor, str] | None:
    """A pack, opened: its file, pixels (mapped), labels and their SHA-256; None if it is not whole or not of that."""
    with ExitStack() as opening:
        try:
            file = opening.enter_context(open(path, "rb"))
            header = json.loads(file.read(HEADER)[8:])
            (n, *stored), (begin, end) = header["pixels"]["shape"], header["labels"]["data_offsets"]
            whole = os.fstat(file.fileno()).st_size == HEADER + end and end - begin == 8 * n
            metadata = header["__metadata__"]
            if metadata["made_of"] != made_of or not metadata["sha256"] or stored != list(shape) or not whole:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # A private map is writable, as torch wants it, and nobody writes.
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        pixels = np.frombuffer(mapping, np.uint8, n * int(np.prod(shape)), HEADER).reshape(n, *shape)
        labels = np.frombuffer(mapping, np.int64, n, HEADER + begin).copy()
        opening.pop_all()  # the file stays open as long as it is used, also when another pack takes its name
        return file, torch.from_numpy(pixels), torch.from_numpy(labels), str(metadata["sha256"])

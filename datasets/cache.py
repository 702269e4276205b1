"""Cache of data sets made from many files: two .npy files that are written once and read through a memory map.

NAME.json holds the fingerprint of the source files and the SHA-256 of the arrays. The arrays, pixels uint8 (N, C, H, W)
and labels int64 (N,), are stored beside it under names that contain the first digits of this sum. NAME.json is replaced
atomically after the arrays are written, so it never names arrays of another version.
"""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from tqdm import tqdm

from datasets.images import ImageDataset
from utils.archives import BROKEN, ArrayFile
from utils.errors import InputError, printable, replacing, writing
from utils.locks import in_turn

log = logging.getLogger(__name__)

Part = tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]  # pixels (n, C, H, W), labels (n,), (file, reason) left out


def fingerprint(files: Iterable[Path], root: Path, *options: object) -> str:
    """Return a digest of the names below ``root``, sizes and times of source files, and of the options."""
    digest = hashlib.sha256(repr(options).encode())
    for path in files:
        try:
            status = os.stat(path)
            size_and_time = f"{status.st_size}\0{status.st_mtime_ns}"
        except PermissionError:  # it will be listed as unreadable
            size_and_time = ""
        digest.update(f"{path.relative_to(root)}\0{size_and_time}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def open_cached(
    path: Path, made_of: str, shape: Sequence[int], total: int, parts: Callable[[], Iterator[Part]], num_classes: int
) -> ImageDataset:
    """Open the cached data set ``path``; make it first if it is missing, incomplete, or made from other files.

    Args:
        path: path of the cache, NAME.json; NAME.unreadable.txt beside it lists the files that could not be read.
        made_of: fingerprint of the source files, from ``fingerprint``.
        shape: shape of an image, (C, H, W).
        total: number of images, including those that cannot be read, for the progress bar.
        parts: function that yields the images in chunks; only called if the cache has to be made.
        num_classes: number of classes.

    Raises:
        InputError: if no image can be read.
        UserError: if the cache cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    images = _open(path, made_of, shape, num_classes)
    if images is None:
        with in_turn(path.with_name(f".{path.name}.lock"), f"another process is making {path}"):
            images = _open(path, made_of, shape, num_classes)
            if images is None:
                _make(path, made_of, shape, total, parts())
                images = _open(path, made_of, shape, num_classes)
    if images is None:
        raise InputError(f"{path} was changed while it was made: run this again")
    return images


def _open(path: Path, made_of: str, shape: Sequence[int], num_classes: int) -> ImageDataset | None:
    """Return the cached data set, or None if it is missing, incomplete, or made from other files."""
    try:
        record = json.loads(path.read_text())
        if record["made_of"] != made_of:
            return None
        pixels_path, labels_path = _array_paths(path, record["sha256"])
        for array_path in (pixels_path, labels_path):
            ArrayFile(array_path)  # compares the size of the file with its header
        # Copy on write: torch needs a writable array, and the file must not change.
        pixels = npy.open_memmap(pixels_path, mode="c")
        labels = np.load(labels_path)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), *shape):
            return None
        # The open file stays readable when another version of the cache replaces it.
        file = open(pixels_path, "rb")  # noqa: SIM115
    except BROKEN:
        return None
    return ImageDataset(
        torch.from_numpy(pixels),
        torch.from_numpy(labels),
        num_classes,
        fingerprint=record["sha256"],
        file=file,
        offset=pixels.offset,
    )


def _array_paths(path: Path, sha256: str) -> tuple[Path, Path]:
    """Return the files of the pixels and of the labels of the cache ``path``."""
    return path.with_suffix(f".{sha256[:8]}.pixels.npy"), path.with_suffix(f".{sha256[:8]}.labels.npy")


def _make(path: Path, made_of: str, shape: Sequence[int], total: int, parts: Iterator[Part]) -> None:
    """Write the arrays of the cache ``path`` and then its JSON file; the caller has the lock."""
    temporary = path.with_name(f".{path.stem}.pixels.tmp")
    log.info("caching %d images in %s", total, path)
    try:
        with writing(path), open(temporary, "wb") as file:
            labels, unreadable, sha256 = _write_pixels(file, shape, total, parts)
            _list_unreadable(unreadable, total, path.with_suffix(".unreadable.txt"))
        if not len(labels):
            reason = f", such as {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else ""
            raise InputError(f"none of the {total} images of {path.stem} can be read{reason}")
        pixels_path, labels_path = _array_paths(path, sha256)
        with writing(path):
            for older in path.parent.glob(f"{glob.escape(path.stem)}.*.npy"):
                older.unlink()
            os.replace(temporary, pixels_path)
        with replacing(labels_path) as aside, open(aside, "wb") as file:
            np.save(file, labels)
            file.flush()
            os.fsync(file.fileno())
        with replacing(path) as aside:
            aside.write_text(json.dumps({"made_of": made_of, "sha256": sha256}))
    finally:
        temporary.unlink(missing_ok=True)


def _write_pixels(
    file: BinaryIO, shape: Sequence[int], total: int, parts: Iterator[Part]
) -> tuple[np.ndarray, list[tuple[str, str]], str]:
    """Write the pixels to an .npy file whose number of images is known at the end.

    The file is not memory-mapped: on a full disk a failed write is an error, but a memory map kills the process.

    Returns:
        Labels int64 (N,), the (file, reason) left out, and the SHA-256 of pixels, labels and shape.
    """

    def write_header(count: int) -> int:
        file.seek(0)  # numpy pads a header so that it has the same length for any number of rows
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
        return file.tell()

    labels, unreadable, digest = [np.empty(0, np.int64)], [], hashlib.sha256()
    start = write_header(total)
    with tqdm(total=total, unit="image", disable=None) as bar:
        for part_pixels, part_labels, bad in parts:
            part_pixels = np.ascontiguousarray(part_pixels)
            file.write(part_pixels.data)
            digest.update(part_pixels.data)
            labels.append(part_labels.astype(np.int64))
            unreadable += bad
            bar.update(len(part_labels) + len(bad))
    all_labels = np.concatenate(labels)
    digest.update(all_labels.data)
    digest.update(repr((len(all_labels), *shape)).encode())
    if write_header(len(all_labels)) != start:
        raise RuntimeError("numpy wrote .npy headers of two lengths")
    file.flush()
    os.fsync(file.fileno())
    return all_labels, unreadable, digest.hexdigest()


def _list_unreadable(unreadable: list[tuple[str, str]], total: int, path: Path) -> None:
    """Write a list of the files that could not be read to ``path``, if there are any, and log the first ones."""
    path.unlink(missing_ok=True)
    if not unreadable:
        return
    unreadable = [(printable(name), printable(reason)) for name, reason in unreadable]
    path.write_text("".join(f"{name}\t{reason}\n" for name, reason in unreadable), encoding="utf-8")
    for name, reason in unreadable[:10]:
        log.warning("%s cannot be read and is left out: %s", name, reason)
    log.warning("%d of %d files left out, listed in %s", len(unreadable), total, path)

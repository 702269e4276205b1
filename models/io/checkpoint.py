"""Reading checkpoints, which are treated as untrusted data: nothing in them is executed, imported or looked up."""

import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from models.io.pickle_size import MAX_BYTES, check_pickle, check_pickles_of_old_file
from models.io.restricted_pickle import SUBSTITUTES, find_refused
from utils.archives import open_zip
from utils.errors import InputError

# What zipfile, pickle and torch raise for a damaged file.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, AssertionError, OverflowError),
)
OTHER_PICKLE = "its pickle is damaged, not of protocol 2, or does more than hold tensors and plain values"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: tensors, on the CPU, in containers with strings and Python numbers.

    NumPy scalars, which the published code writes, are returned as Python numbers.

    Raises:
        InputError: if the file is missing or damaged, or has an object of another type, which the message names.
    """
    try:
        check_size(path)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(SUBSTITUTES):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # torch's own message advises to execute the file
        found = find_refused(path)
        reason = f"it holds {found}; only tensors and plain values are read" if found else OTHER_PICKLE
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def check_size(path: Path) -> None:
    """Raise InputError for a checkpoint that is incomplete, or would take much memory or time to read."""
    try:
        if not path.is_file():
            raise InputError(f"{path} cannot be read as a checkpoint: there is no such file")
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\3\4"  # PyTorch's own test; before its version 1.6 files were not ZIP archives
            file.seek(0)
            if not zipped:
                check_pickles_of_old_file(file.read(MAX_BYTES + 1))
        if zipped:
            check_whole(path)
            with open_zip(path) as archive:
                entries = archive.infolist()
                if len({entry.filename.lower() for entry in entries}) < len(entries):  # PyTorch ignores case
                    raise ValueError("the names of several of its entries differ in case alone")
                for entry in entries:
                    if entry.filename.lower().endswith(".pkl"):
                        with archive.open(entry) as member:
                            check_pickle(member.read(MAX_BYTES + 1), len(entries))
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error


def check_whole(path: Path) -> None:
    """Raise InputError if a checkpoint is truncated, fails a CRC-32 check (torch makes none), or is compressed.

    ``torch.save`` never compresses, and a compressed file could expand without bound.
    """
    try:
        with open_zip(path) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            damaged = None if compressed else archive.testzip()
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error
    if compressed:
        raise InputError(f"{path} cannot be read as a checkpoint: it is compressed")
    if damaged is not None:
        raise InputError(f"{path} cannot be read as a checkpoint: {damaged} in it is damaged")

"""Safe reading of ZIP archives and numpy files, whose stated sizes are checked before their contents are read."""

import lzma
import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

# What is raised on damaged data here and by zipfile, numpy and the libraries that decompress.
BROKEN = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, struct.error, zlib.error, lzma.LZMAError, tokenize.TokenError, SyntaxError),
)
# The records at the end of a ZIP archive, the first two of them only in one of the 64-bit kind.
END64, LOCATOR64, END = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL"), struct.Struct("<4s4H2LH")
MAX_AXES, MAX_LENGTH = 64, 2**63 - 1  # number and length of the axes of a numpy array
MAX_DIRECTORY = 2**22  # bytes: 60,000 entries, 12 times those of the largest published checkpoint


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a ZIP archive whose entries have different names and share no bytes, so that its size bounds theirs.

    Raises:
        BROKEN: if it is not one; the message names the fault.
    """
    with path.open("rb") as file:
        start, count = _find_directory(file)
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            if len(entries) != count:
                raise ValueError(f"its directory names {len(entries)} entries, not {count}")
            names = {entry.filename for entry in entries}
            if len(names) != count:
                raise ValueError("several of its entries have one name")
            starts = [*(entry.header_offset for entry in entries), start]
            for entry, end in zip(entries, starts[1:], strict=True):
                # The header of an entry is 30 bytes and its name, or more.
                if entry.header_offset + 30 + len(entry.filename) + entry.compress_size > end:
                    raise ValueError(f"{entry.filename} in it overlaps what comes after")
                if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
                    raise ValueError(f"{entry.filename} in it has two sizes")
            yield archive


def _find_directory(file: IO[bytes]) -> tuple[int, int]:
    """Find the start of the directory of a ZIP archive, and the number of its entries.

    Only archives whose last record ends the file are accepted: all readers find the same directory in them.
    """
    size = file.seek(0, os.SEEK_END)
    tail_size = min(size, END64.size + LOCATOR64.size + END.size)
    file.seek(-tail_size, os.SEEK_END)
    tail = file.read(tail_size).rjust(END64.size + LOCATOR64.size + END.size, b"\0")
    signature, *_, count, length, start, _ = END.unpack(tail[-END.size :])
    if signature != b"PK\5\6":
        raise ValueError("it is no ZIP archive, or does not end as one")
    end = size - END.size
    signature, _, place, _ = LOCATOR64.unpack(tail[END64.size : END64.size + LOCATOR64.size])
    if signature == b"PK\6\7":
        end = size - len(tail)
        signature, *_, count, length, start = END64.unpack(tail[: END64.size])
        if signature != b"PK\6\6" or place != end:
            raise ValueError("its directory is not where it says")
    if start + length != end:
        raise ValueError("its directory is not where it says")
    if length > MAX_DIRECTORY:
        raise ValueError(f"its directory has {length:,} bytes, at most {MAX_DIRECTORY:,} are read")
    return start, count


class ArrayFile:
    """The arrays in an .npz or .npy file; their shapes are known, and checked against its size, before any is read.

    Attributes:
        path: path of the file.
        arrays: shape and dtype of each array by its name, which is "" in an .npy file.

    Raises:
        BROKEN: if it is neither; the message names the fault.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        with path.open("rb") as file:
            start = file.read(len(npy.MAGIC_PREFIX))
            self._zipped = start[:2] == b"PK"
            if not self._zipped and start != npy.MAGIC_PREFIX:
                raise ValueError("it does not start as one")
            if not self._zipped:
                file.seek(0)
                self.arrays[""] = _read_header(file, path.stat().st_size)
        if self._zipped:
            with open_zip(path) as archive:
                for entry in archive.infolist():
                    with archive.open(entry) as member:
                        if entry.filename.endswith(".npy"):
                            self.arrays[entry.filename[:-4]] = _read_header(member, entry.file_size)

    def size(self, name: str) -> int:
        """Return the bytes of the array ``name`` in memory."""
        shape, dtype = self.arrays[name]
        return math.prod(shape) * dtype.itemsize

    def read(self, name: str) -> np.ndarray:
        """Read the array ``name``.

        Raises:
            BROKEN: if it holds Python objects, would not fit into the memory of this machine, or is damaged.
        """
        check_memory(self.size(name))
        with warnings.catch_warnings(action="ignore"):  # of files that Python 2 wrote
            if not self._zipped:
                with self.path.open("rb") as file:
                    return npy.read_array(file, allow_pickle=False)
            with open_zip(self.path) as archive, archive.open(f"{name}.npy") as member:
                return npy.read_array(member, allow_pickle=False)


def check_memory(size: int) -> None:
    """Check that ``size`` bytes fit into the memory of this machine.

    Raises:
        ValueError: if they do not.
    """
    if size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise ValueError(f"{size / 1e9:,.1f} GB are more than the memory of this machine")


def _read_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and the type of an array from the start of an .npy file of ``size`` bytes.

    Raises:
        BROKEN: if the header is damaged or does not fit the size.
    """
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is of version {version} of the format, 1.0 and 2.0 are read")
    try:
        with warnings.catch_warnings(action="ignore"):  # of files that Python 2 wrote
            shape, _, dtype = readers[version](file)
    except BROKEN as error:  # its message may contain the header, or advise to trust the file
        raise ValueError("its header is damaged or too long") from error
    if dtype.names is not None or dtype.subdtype is not None:  # a dtype whose name can be as long as the header
        raise ValueError("it holds records, not numbers")
    if len(shape) > MAX_AXES or any(length > MAX_LENGTH for length in shape):
        raise ValueError("its header is damaged: no array is of such a shape")
    if dtype.hasobject:
        return shape, dtype  # the contents are a pickle, which is not read
    if not all(length >= 0 for length in shape) or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"it says that it holds {dtype} {shape}, but has {size - file.tell():,} bytes")
    return shape, dtype

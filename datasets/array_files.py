"""Reading of arrays and tables: .npy, .npz, .parquet and .csv files with one row for each sample."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.loader import IN_MEMORY
from utils.archives import BROKEN, ArrayFile, check_memory
from utils.errors import InputError, printable
from utils.options import did_you_mean

TABLES = (".parquet", ".csv")
ARRAYS = (".npy", ".npz")
USUAL_NAMES = ("X", "x", "data", "samples", "arr_0")  # names of the data in an .npz file
UNNAMED_INDEX = re.compile(r"|__index_level_\d+__")  # in .csv and .parquet files
LISTED = 20  # names that a message lists


@dataclass(frozen=True)
class Arrays:
    """The rows of a file.

    Attributes:
        path: path of the file.
        x: data, (N, *shape) of a numeric type; a memory map of a large .npy file.
        labels: classes, (N,) of integers or text; None for none.
        cond: conditions, float32 (N, K); None for none.
        columns: names of the columns of a table that are the data; empty for arrays.
    """

    path: Path
    x: np.ndarray
    labels: np.ndarray | None = None
    cond: np.ndarray | None = None
    columns: tuple[str, ...] = ()

    def take(self, rows: np.ndarray) -> "Arrays":
        """Return the rows with these numbers, or where ``rows`` is True."""
        labels, cond = (None if part is None else part[rows] for part in (self.labels, self.cond))
        return replace(self, x=self.x[rows], labels=labels, cond=cond)


def read_arrays(
    path: Path,
    key: str,
    columns: Sequence[str | int] | None = None,
    labels: str | None = None,
    cond: str | Sequence[str] | None = None,
    map_large: bool = False,
) -> Arrays:
    """Read a file.

    Args:
        path: path of the file.
        key: key of the configuration that names it, for messages.
        columns: names of the columns of a table that are the data, or numbers along the first axis of the samples of an
            array; None: all of an array, and all columns of a table but those of ``labels`` and ``cond``.
        labels: column of a table, array in an .npz file, or for .npy another such file, with the classes.
        cond: the same for the condition; of a table one column or several.
        map_large: whether to map an .npy file of more than ``IN_MEMORY`` bytes into memory.

    Raises:
        InputError: naming the file, and the key, column or array at fault.
    """
    kind = path.suffix.lower()
    if kind not in (*ARRAYS, *TABLES):
        raise InputError(f"{key}={path}: need a file .npy, .npz, .parquet or .csv")
    try:
        if not path.is_file():
            raise InputError(f"{key}={path} is not a file" if path.exists() else f"{key}={path} does not exist")
        if kind in TABLES:
            arrays = _read_table(path, columns, labels, cond)
        else:
            arrays = _read_stored(path, columns, labels, cond, map_large)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path} cannot be read: {printable(str(error))}") from error
    if not len(arrays.x) or 0 in arrays.x.shape:
        raise InputError(f"{key}={path} holds an array of shape {arrays.x.shape}: need at least one row and one value")
    if arrays.x.ndim > 5:
        raise InputError(f"{key}={path} holds an array of shape {arrays.x.shape}: samples have at most 4 axes")
    for name, part, axes in (("data.labels", arrays.labels, 1), ("data.cond", arrays.cond, 2)):
        if part is not None and (part.ndim != axes or len(part) != len(arrays.x)):
            raise InputError(f"{name}: {path} has {len(arrays.x)} rows, and this array is of shape {part.shape}")
    if arrays.cond is not None and not np.isfinite(arrays.cond).all():
        row = int(np.argwhere(~np.isfinite(arrays.cond))[0, 0])
        raise InputError(f"data.cond={cond}: row {row} of {path} holds a value that is not a finite number")
    return arrays


def _read_stored(
    path: Path,
    columns: Sequence[str | int] | None,
    labels: str | None,
    cond: str | Sequence[str] | None,
    map_large: bool,
) -> Arrays:
    """Read an .npy or .npz file; see ``read_arrays``."""
    stored = ArrayFile(path)
    names = [name for name in stored.arrays if name not in (labels, cond)]
    name = next((usual for usual in ("", *USUAL_NAMES) if usual in names), names[0] if len(names) == 1 else None)
    if name is None:
        raise InputError(f"{path} has the arrays {_listed(stored.arrays)}: call that of the data X")
    shape, dtype = stored.arrays[name]
    _check_numeric(dtype, path, f"array {name}" if name else "array")
    if not shape:
        raise InputError(f"{path} holds a single number, and not one for each sample")
    if map_large and name == "" and columns is None and stored.size("") > IN_MEMORY:
        x = np.load(path, mmap_mode="c", allow_pickle=False)  # torch wants writable memory; nothing is written
        if not x.flags.c_contiguous:
            raise InputError(f"{path} is stored in Fortran order: store the array in C order to map it into memory")
        if _native(x[:0]).dtype != dtype:
            raise InputError(f"{path} holds {dtype}: store it as {_native(x[:0]).dtype} to map it into memory")
    else:
        x = _native(stored.read(name))
    x = x[:, None] if x.ndim == 1 else x
    if columns is not None:
        x = x[:, _numbers(columns, x.shape[1], path)]

    def other(key: str, value: str | Sequence[str]) -> np.ndarray:
        if not isinstance(value, str):
            raise InputError(f"{key}={list(value)}: a list names columns of a table, and {path} is none")
        if path.suffix.lower() == ".npy":
            file = Path(value)
            if not file.is_file():
                raise InputError(f"{key}={value}: no such file; for an .npy file the path of another one is needed")
            return _plain(ArrayFile(file).read(""), file, key)
        if value not in stored.arrays:
            known = list(stored.arrays)
            raise InputError(f"{key}={value}: {path} has the arrays {_listed(known)}{did_you_mean(value, known)}")
        return _plain(stored.read(value), path, value)

    own = None if labels is None else other("data.labels", labels)
    told = None if cond is None else other("data.cond", cond)
    if told is not None:
        _check_numeric(told.dtype, path, "data.cond")
        told = told.astype(np.float32)
        told = told[:, None] if told.ndim == 1 else told
    return Arrays(path, x, own, told)


def _read_table(
    path: Path, columns: Sequence[str | int] | None, labels: str | None, cond: str | Sequence[str] | None
) -> Arrays:
    """Read a .parquet or .csv file; see ``read_arrays``."""
    import pyarrow
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".csv":
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
        else:
            check_memory(path.stat().st_size)
            table = parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        reason = printable(str(error)).splitlines()[0]
        raise InputError(f"{path} cannot be read as a {path.suffix[1:]} file: {reason}") from error
    known = table.column_names
    if path.suffix.lower() == ".csv" and columns is None and all(map(_is_number, known)):
        raise InputError(
            f"{path} begins with numbers: its first line has to name the columns (if it does, say so by data.columns)"
        )
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise InputError(f"{path} has two columns called {printable(twice)}")

    def column(key: str, name: str) -> np.ndarray:
        if name not in known:
            raise InputError(f"{key}={name}: {path} has the columns {_listed(known)}{did_you_mean(name, known)}")
        values = table[name]
        kind = values.type
        if pyarrow.types.is_dictionary(kind):
            values = values.cast(kind.value_type)
        if pyarrow.types.is_decimal(kind):
            values = values.cast(pyarrow.float64())
        return _plain(values.to_numpy(), path, name)

    conditions = [] if cond is None else [cond] if isinstance(cond, str) else list(cond)
    chosen = [name for name in known if name not in (labels, *conditions)] if columns is None else [*map(str, columns)]
    if not chosen:
        raise InputError(f"{path} has no column left for the data, of {_listed(known)}")
    if columns is None and (index := next(filter(UNNAMED_INDEX.fullmatch, chosen), None)) is not None:
        raise InputError(
            f"{path}: column {index or 1} has no name, as that in which pandas numbers the rows: name the columns of "
            "the data, data.columns=[...]"
        )

    def numeric(key: str, name: str) -> np.ndarray:
        values = column(key, name)
        advice = "" if key == "data.cond" else ": name the columns of the data, data.columns=[...]"
        _check_numeric(values.dtype, path, f"column {printable(name)}", advice)
        return values

    x = np.stack([numeric("data.columns", name) for name in chosen], 1)
    own = None if labels is None else column("data.labels", labels)
    told = np.stack([numeric("data.cond", name) for name in conditions], 1).astype(np.float32) if conditions else None
    return Arrays(path, x, own, told, tuple(chosen))


def _plain(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Return text as an array of strings; other objects are refused."""
    if values.dtype.kind in "biufU":
        return values
    if values.dtype.kind == "O":
        if missing := [row for row, value in enumerate(values) if value is None]:
            raise InputError(f"{path}: {printable(name)} has no value in row {missing[0]}")
        if all(isinstance(value, str) for value in values):
            return values.astype(str)
    raise InputError(f"{path}: {printable(name)} holds {values.dtype}, neither numbers nor text")


def _native(values: np.ndarray) -> np.ndarray:
    """Return numbers in a type of which there are tensors: in this machine's byte order, of 64 bits at most."""
    wide = values.dtype.kind == "f" and values.dtype.itemsize > 8
    return values.astype(np.float64 if wide else values.dtype.newbyteorder("="), copy=False)


def _check_numeric(dtype: np.dtype, path: Path, name: str, advice: str = "") -> None:
    if dtype.kind not in "biuf":
        what = "text" if dtype.kind == "U" else str(dtype)
        raise InputError(f"{path}: {name} holds {what}, not numbers{advice}")


def _numbers(columns: Sequence[str | int], count: int, path: Path) -> list[int]:
    """Return numbers along the first axis of a sample, checked."""
    for number in columns:
        if type(number) is not int or not 0 <= number < count:
            raise InputError(f"data.columns={list(columns)}: {path} has the columns 0 to {count - 1}")
    return list(columns)  # type: ignore[arg-type]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(printable(str(name)) for name in names[:LISTED]) + ", ..." * (len(names) > LISTED)

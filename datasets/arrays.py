"""The data set ``array``: arrays and tables of bounded values of any shape, in their own units."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from datasets.array_bounds import (
    MOST_CHANNELS,
    MOST_LEVELS,
    Outside,
    chunks,
    describe_bounds,
    describe_compositions,
    keep_inside,
)
from datasets.array_files import Arrays, read_arrays
from datasets.folders import ClassNames
from datasets.images import ImageDataset
from datasets.units import create_units
from utils.errors import InputError, printable
from utils.options import Name, PathName, Probability, did_you_mean

EVERY = 10  # without a held-out file every tenth row is held out

BoundOption = Annotated[
    float | Literal["open"] | Sequence[float | Literal["open"]],
    Field(description="a number, open, or a list with one of them for each column or channel"),
]
ScaleOption = Annotated[
    Annotated[float, Field(gt=0)] | Sequence[Annotated[float, Field(gt=0)]],
    Field(description="a positive number, or one for each column or channel"),
]
MassOption = Annotated[
    Probability | Sequence[Probability], Field(description="a share, or one for each column or channel")
]
Columns = Annotated[Sequence[Name | int], Field(min_length=1, description="a list of names or numbers")]
Told = Annotated[Name | Sequence[Name], Field(description="a name, or a list of names")]


@dataclass(frozen=True)
class Files:
    """The options of ``array`` that say where the rows are, and what they are."""

    root: str | None
    held_out: str | None
    columns: Sequence[str | int] | None
    labels: str | None
    cond: str | Sequence[str] | None
    outside: Outside

    def read(self) -> tuple[Arrays, Arrays | None]:
        """Read the file of the data, and the held-out file if there is one.

        Raises:
            InputError: naming the key or file at fault, or the key if the two have other columns.
        """
        if self.root is None:
            raise InputError("data.root is missing: data=array needs a file .npy, .npz, .parquet or .csv")
        parts: list[Arrays] = []
        for key, name in (("data.root", self.root), ("data.held_out", self.held_out)):
            if name is not None:
                mapped = self.outside == "error"
                parts.append(read_arrays(Path(name), key, self.columns, self.labels, self.cond, mapped))
        if len(parts) == 1:
            if isinstance(parts[0].x, np.memmap):
                raise InputError(f"{self.root} is mapped into memory: say which rows are held out, data.held_out=FILE")
            return parts[0], None
        first, second = parts
        if first.x.shape[1:] != second.x.shape[1:] or first.columns != second.columns:
            raise InputError(
                f"data.held_out={self.held_out} has rows of shape {second.x.shape[1:]} {list(second.columns)}, "
                f"data.root of {first.x.shape[1:]} {list(first.columns)}"
            )
        return first, second


def describe_array(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the section ``data`` that the files determine, where they are null.

    They are ``shape``, ``columns``, ``low``, ``high``, ``scale``, ``levels``, ``mass_low``, ``mass_high``,
    ``num_classes``, ``class_names`` and ``cond_size``. A bound that is left out is the smallest or largest value of its
    column or channel; for integers, and for more than a thousand channels, of all of them. That of continuous values is
    moved outwards by (largest - smallest) / (n - 1), n the number of values, unless several of them lie on it. Both
    splits count. The scale of an open side is the mean distance of the values from the bound, without those on it, or
    an eighth of the largest distance if that is more.

    Raises:
        InputError: naming the key or file at fault, with the row and the column.
    """
    options: dict[str, Any] = {field.name: data.get(field.name) for field in fields(Files)}
    files = Files(**options)
    parts = [part for part in files.read() if part is not None]
    shape = parts[0].x.shape[1:]
    columns = list(parts[0].columns) or data.get("columns")
    found: dict[str, Any] = {"columns": columns if data.get("columns") or shape[0] <= MOST_CHANNELS else None}
    if data.get("simplex") is not None:
        found |= describe_compositions(data, parts)
    else:
        found |= {"shape": list(shape), **describe_bounds(data, parts)}
    if data.get("shape") not in (None, found["shape"]):
        raise InputError(f"data.shape={data['shape']}: the samples of {files.root} have the shape {found['shape']}")
    names, count = _classes(parts, data.get("class_names"), data.get("num_classes") or 0)
    found |= {"class_names": list(names) or None, "num_classes": count}
    found["cond_size"] = 0 if parts[0].cond is None else parts[0].cond.shape[1]
    if data.get("classes") and parts[0].labels is None:
        raise InputError("data.classes=True: say which column or array has them, data.labels=NAME")
    unknown = [key for key in found if data.get(key) is None or (key == "num_classes" and not data[key])]
    return {key: found[key] for key in unknown}


def array(
    train: bool,
    *,
    shape: Sequence[int],
    root: PathName | None = None,
    held_out: PathName | None = None,
    columns: Columns | None = None,
    labels: Name | None = None,
    cond: Told | None = None,
    cond_size: Annotated[int, Field(ge=0, le=4096)] | None = None,
    low: BoundOption | None = None,
    high: BoundOption | None = None,
    scale: ScaleOption | None = None,
    levels: Annotated[int, Field(ge=0, le=MOST_LEVELS)] | None = None,
    mass_low: MassOption | None = None,
    mass_high: MassOption | None = None,
    simplex: Literal["ordered", "sticks"] | None = None,
    outside: Outside = "error",
    num_classes: int = 0,
    class_names: ClassNames | None = None,
    **_: object,
) -> ImageDataset:
    """Load one split of an array or table; without a held-out file every tenth row is held out.

    Args:
        train: whether to load the training split.
        shape: shape of a sample in the cube.
        root: path of the file.
        held_out: path of the file of held-out rows.
        columns: columns of the data, see ``read_arrays``.
        labels: classes, see ``read_arrays``.
        cond: conditions, see ``read_arrays``.
        cond_size: length of a condition.
        low, high, scale, levels, simplex, mass_low, mass_high: see ``create_units``.
        outside: treatment of values that are missing or out of bounds: ``error``; ``drop``, which leaves out their row;
            or ``clip``, which moves values to the bounds and refuses missing ones.
        num_classes: number of classes; 0 for that of the labels of this split.
        class_names: names of the classes, in the order of their numbers; labels are these names, or the numbers.

    Raises:
        InputError: naming the key or file at fault, with the row and the column.
    """
    options = {"shape": shape, "low": low, "high": high, "scale": scale, "levels": levels, "simplex": simplex}
    options |= {"mass_low": mass_low, "mass_high": mass_high}
    files = Files(root, held_out, columns, labels, cond, outside)
    first, second = files.read()
    units = create_units(options)
    if units is None:
        raise InputError("data.low is missing")
    if second is not None:
        chosen = first if train else second
        numbers = np.arange(len(chosen.x))
    else:
        numbers = np.arange(len(first.x))
        numbers = numbers[(numbers % EVERY != EVERY - 1) == train]
        chosen = first.take(numbers)
    expected = tuple(shape) if simplex is None else (shape[0] + 1,)
    if chosen.x.shape[1:] != expected:
        raise InputError(f"{chosen.path} has rows of shape {chosen.x.shape[1:]}, and those of the run have {expected}")
    if len(chosen.x):
        chosen = keep_inside(chosen, units, outside, numbers)
    if not len(chosen.x):
        raise InputError(f"{chosen.path} has no row {'to train on' if train else 'that is held out'}")
    names, count = _classes([chosen], class_names, num_classes)
    if chosen.labels is not None and not names and num_classes:
        if count > num_classes:
            raise InputError(f"{chosen.path} has the class {count - 1}, and data.num_classes={num_classes}")
        count = num_classes
    mapped = chosen.x if isinstance(chosen.x, np.memmap) else None
    x = torch.from_numpy(np.ascontiguousarray(chosen.x) if mapped is None else mapped)
    told = torch.zeros(len(x), dtype=torch.int64) if chosen.labels is None else _numbered(chosen, names, count)
    return ImageDataset(
        x,
        told if chosen.cond is None else torch.from_numpy(chosen.cond),
        num_classes=count,
        levels=levels or None,
        class_names=names,
        fingerprint=_fingerprint(chosen),
        file=None if mapped is None else open(chosen.path, "rb"),
        offset=0 if mapped is None else mapped.offset,
        units=units,
    )


def _classes(parts: list[Arrays], names: Sequence[str] | None, expected: int) -> tuple[tuple[str, ...], int]:
    """Return the names of the classes, none if they are numbered from 0, and how many there are, at least 1.

    Args:
        parts: rows of one split or of both.
        names: names, if they are known.
        expected: number of classes of the run, of which a split may have few; 0 if it is not known.
    """
    if parts[0].labels is None:
        return (), 1
    values = np.unique(np.concatenate([part.labels for part in parts if part.labels is not None]))
    if names:
        return tuple(names), len(names)
    if values.dtype.kind == "f":
        raise InputError(f"data.labels: {parts[0].path} has the class {values[0]}: need integers or text")
    if values.dtype.kind in "biu" and values.min() >= 0 and values.max() < max(expected, 2 * len(values)):
        return (), int(values.max()) + 1
    return tuple(str(value) for value in values), len(values)


def _numbered(arrays: Arrays, names: Sequence[str], count: int) -> torch.Tensor:
    """Return the class numbers of the rows, int64 (N,)."""
    labels = arrays.labels
    assert labels is not None
    numbered = labels.dtype.kind in "biu" and not any(name.lstrip("-").isdecimal() for name in names)
    if not names or numbered:
        for row in np.flatnonzero((labels < 0) | (labels >= count))[:1]:
            raise InputError(
                f"{arrays.path}: row {row} is of class {labels[row]}, and the classes are 0 to {count - 1}"
            )
        return torch.from_numpy(labels.astype(np.int64))
    numbers = {name: number for number, name in enumerate(names)}
    texts = [str(value) for value in labels]
    for row, text in enumerate(texts):
        if text not in numbers:
            known = ", ".join(map(printable, names[:20]))
            raise InputError(
                f"{arrays.path}: row {row} is of class {printable(text)}, known are {known}{did_you_mean(text, names)}"
            )
    return torch.tensor([numbers[text] for text in texts])


def _fingerprint(arrays: Arrays) -> str:
    """Return the SHA-256 of the rows, their classes and conditions."""
    digest = hashlib.sha256(repr((arrays.x.shape, arrays.x.dtype.str)).encode())
    for _, rows in chunks(arrays.x):
        digest.update(np.ascontiguousarray(rows).data)
    if arrays.labels is not None:
        digest.update("\0".join(map(str, arrays.labels)).encode())
    if arrays.cond is not None:
        digest.update(np.ascontiguousarray(arrays.cond).data)
    return digest.hexdigest()

"""The bounds of arrays: found in the data where they are not given, and checked."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import numpy as np

from datasets.array_files import Arrays
from datasets.units import OPEN, SUM_TOLERANCE, Composition, Interval, Units
from utils.errors import InputError, printable

log = logging.getLogger(__name__)

CHUNK = 2**24  # values of a memory-mapped file that are read at once
MOST_CHANNELS = 1000  # more than these share their bounds, which are stored in the configuration of a run
MOST_LEVELS = 2**16  # more integers than these are treated as continuous values
LONGEST = 8.0  # the scale of an open side is at least an eighth of the largest distance from the bound
Outside = Literal["error", "clip", "drop"]


@dataclass
class _Range:
    """The smallest and the largest finite value of each channel, and how many values there are and lie on each."""

    smallest: np.ndarray
    largest: np.ndarray
    count: np.ndarray
    on_smallest: np.ndarray
    on_largest: np.ndarray

    def pooled(self) -> "_Range":
        """Return the range of all channels together, as of one."""
        smallest, largest = self.smallest.min(keepdims=True), self.largest.max(keepdims=True)
        on_smallest = self.on_smallest[self.smallest == smallest].sum(keepdims=True)
        on_largest = self.on_largest[self.largest == largest].sum(keepdims=True)
        return _Range(smallest, largest, self.count.sum(keepdims=True), on_smallest, on_largest)


def describe_bounds(data: Mapping[str, Any], parts: list[Arrays]) -> dict[str, Any]:
    """Return ``low``, ``high``, ``scale`` and ``levels`` of values in intervals, see ``describe_array``."""
    channels = parts[0].x.shape[1]
    listed = [key for key in ("low", "high", "scale", "mass_low", "mass_high") if isinstance(data.get(key), list)]
    for key in listed:
        if len(data[key]) != channels:
            raise InputError(f"data.{key} has {len(data[key])} values, and the data {channels} columns or channels")
        if channels > MOST_CHANNELS:
            raise InputError(f"data.{key}: more than {MOST_CHANNELS} columns or channels share one value")
    integers = all(part.x.dtype.kind in "biu" for part in parts)
    found = _find_range(parts)
    if channels > MOST_CHANNELS:
        found, channels = found.pooled(), 1
    if integers:  # one range, so that all columns have the same levels
        ends = [int(found.smallest.min())], [int(found.largest.max())]
    else:
        margin = (found.largest - found.smallest) / np.maximum(found.count - 1, 1)
        ends = (
            np.where(found.on_smallest > 1, found.smallest, found.smallest - margin).tolist(),
            np.where(found.on_largest > 1, found.largest, found.largest + margin).tolist(),
        )
    low, high = (end if data.get(key) is None else data[key] for key, end in zip(("low", "high"), ends, strict=True))
    for channel in map(int, np.flatnonzero(found.smallest == found.largest)):
        if data.get("low") is None or data.get("high") is None:
            raise InputError(
                f"{parts[0].path}: {_column(parts[0], channel)} is constant, {found.smallest[channel]:g}: leave it out "
                "by data.columns, or give data.low and data.high"
            )
    low, high = (end[0] if isinstance(end, list) and len(end) == 1 else end for end in (low, high))
    scale = data.get("scale")
    if scale is None:
        scale = _find_scale(parts, low, high)
    lows, highs = (end if isinstance(end, list) else [end] * channels for end in (low, high))
    kind = parts[0].x.dtype
    return {
        "low": low,
        "high": high,
        "scale": scale,
        "levels": _find_levels(data.get("levels"), low, high, integers),
        "mass_low": _shares(lows, found.smallest, found.on_smallest / found.count, kind),
        "mass_high": _shares(highs, found.largest, found.on_largest / found.count, kind),
    }


def _shares(bounds: list[Any], ends: np.ndarray, shares: np.ndarray, kind: np.dtype) -> list[float]:
    """Return the shares of the values on the bounds, from those on the outermost values of the channels, ``ends``."""
    # Compared in the type of the data, since a bound of a float32 file need not be typed with all of its digits.
    rounded = kind.type if kind.kind == "f" else np.float64
    on_end = [bound != OPEN and rounded(bound) == rounded(end) for bound, end in zip(bounds, ends, strict=True)]
    return np.where(on_end, shares, 0.0).round(6).tolist()


def _find_levels(levels: int | None, low: Any, high: Any, integers: bool) -> int:
    """Return the number of levels of the data, 0 for continuous values."""
    one_range = not isinstance(low, list) and not isinstance(high, list) and OPEN not in (low, high)
    if levels:
        if not integers or not one_range or low != int(low) or levels != high - low + 1:
            raise InputError(f"data.levels={levels}: the data are not the {levels} integers from data.low to data.high")
        return levels
    if levels == 0 or not integers or not one_range or not high - low < MOST_LEVELS:
        return 0
    if low != int(low) or high != int(high):
        raise InputError(
            f"data.low={low} and data.high={high}: the data are integers; data.levels=0 treats them as continuous"
        )
    return int(high - low) + 1


def describe_compositions(data: Mapping[str, Any], parts: list[Arrays]) -> dict[str, Any]:
    """Return ``shape``, ``low``, ``high``, ``scale``, ``levels`` and the masses on the bounds of compositions."""
    shape = parts[0].x.shape[1:]
    if len(shape) != 1 or shape[0] < 2:
        raise InputError(
            f"data.simplex={data['simplex']} is for rows of two or more parts, the data have shape {shape}"
        )
    if data.get("low") not in (None, 0) or isinstance(data.get("high"), list | str):
        raise InputError(
            f"data.simplex={data['simplex']}: the parts are at least 0; data.high is the number that they sum to"
        )
    found = _find_range(parts)
    zeros = np.where(found.smallest == 0, found.on_smallest / found.count, 0.0)
    masses = {"mass_low": zeros.round(6).tolist(), "mass_high": 0.0}
    return {"shape": [shape[0] - 1], "low": 0.0, "high": 1.0, "scale": 1.0, "levels": 0, **masses}


def chunks(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows of ``x`` a few at a time, with the number of the first one, as (rows, channels, values)."""
    step = max(1, CHUNK // max(1, x[0].size))
    for start in range(0, len(x), step):
        rows = x[start : start + step]
        yield start, rows.reshape(len(rows), x.shape[1], -1)


def _find_range(parts: list[Arrays]) -> _Range:
    channels = parts[0].x.shape[1]
    smallest, largest = np.full(channels, np.inf), np.full(channels, -np.inf)
    for part in parts:
        for _, rows in chunks(part.x):
            finite = np.isfinite(rows)
            smallest = np.minimum(smallest, np.where(finite, rows, np.inf).min((0, 2)))
            largest = np.maximum(largest, np.where(finite, rows, -np.inf).max((0, 2)))
    counts = np.zeros((3, channels), np.int64)
    for part in parts:
        for _, rows in chunks(part.x):
            ends = (rows == smallest[:, None]), (rows == largest[:, None])
            counts += [np.isfinite(rows).sum((0, 2)), *(end.sum((0, 2)) for end in ends)]
    for channel in np.flatnonzero(counts[0] == 0):
        raise InputError(f"{parts[0].path}: {_column(parts[0], channel)} has no finite value")
    return _Range(smallest, largest, *counts)


def _find_scale(parts: list[Arrays], low: Any, high: Any) -> Any:
    """Return the scale of the open sides, 1 for channels without one; see ``describe_array``."""
    channels = parts[0].x.shape[1]
    lows, highs = (end if isinstance(end, list) else [end] * channels for end in (low, high))
    if OPEN not in (*lows, *highs):
        return 1.0
    scales = []
    for channel, (bottom, top) in enumerate(zip(lows, highs, strict=True)):
        if OPEN not in (bottom, top) or bottom == top:
            scales.append(1.0)
            continue
        total, count, most = 0.0, 0, 0.0
        for part in parts:
            for _, rows in chunks(part.x):
                values = rows[:, channel].astype(np.float64)
                distance = values - bottom if top == OPEN else top - values
                distance = distance[np.isfinite(distance) & (distance > 0)]
                total, count, most = total + distance.sum(), count + distance.size, max(most, distance.max(initial=0.0))
        if not count:
            raise InputError(f"{parts[0].path}: {_column(parts[0], channel)} has no value inside of its bound")
        scales.append(float(max(total / count, most / LONGEST)))
    return scales


def keep_inside(arrays: Arrays, units: Units, outside: Outside, numbers: np.ndarray) -> Arrays:
    """Check that all values are inside of the bounds, or do with the others what ``outside`` says.

    Args:
        arrays: rows of one split.
        units: bounds.
        outside: option of ``array``.
        numbers: number of each row in its file.

    Raises:
        InputError: naming the first row and column at fault.
    """
    bad_rows = np.zeros(len(arrays.x), bool)
    changed = 0
    for start, rows in chunks(arrays.x):
        bad, requirement = _find_outside(rows, units)
        if outside == "clip" and isinstance(units, Interval):
            low, high = _ends(units, rows)
            finite = np.isfinite(rows)
            changed += int((bad & finite).sum())
            if (bad & finite).any():
                arrays.x[start : start + len(rows)] = np.where(finite, np.clip(rows, low, high), rows).reshape(
                    len(rows), *arrays.x.shape[1:]
                )
            bad &= ~finite
        if bad.any() and outside != "drop":
            row, channel, position = np.argwhere(bad)[0]
            raise InputError(
                f"{arrays.path}: row {numbers[start + row]}, {_column(arrays, channel)} is "
                f"{rows[row, channel, position]}{requirement(channel, rows[row])}; "
                "data.outside=drop leaves such rows out"
                + (", clip moves values to the bounds" if isinstance(units, Interval) else "")
            )
        bad_rows[start : start + len(rows)] = bad.any((1, 2))
    if changed:
        log.warning("%s: %d values outside of the bounds are moved to them (data.outside=clip)", arrays.path, changed)
    if bad_rows.any():
        log.warning("%s: %d of %d rows are left out (data.outside=drop)", arrays.path, bad_rows.sum(), len(bad_rows))
        arrays = arrays.take(~bad_rows)
    return arrays


def _find_outside(rows: np.ndarray, units: Units) -> tuple[np.ndarray, Any]:
    """Return which values of (rows, channels, values) are not allowed, and a function that says what is."""
    if isinstance(units, Composition):
        sums = rows.astype(np.float64).sum(1, keepdims=True)
        wrong = ~(np.abs(sums - units.total) <= SUM_TOLERANCE * units.total)
        bad = ~(rows >= 0) | wrong

        def of_parts(channel: int, row: np.ndarray) -> str:
            return f", in a row that sums to {row.sum():g}: need parts of at least 0 that sum to {units.total:g}"

        return bad, of_parts
    assert isinstance(units, Interval)
    low, high = _ends(units, rows)
    bad = ~(np.isfinite(rows) & (rows >= low) & (rows <= high))

    def of_interval(channel: int, row: np.ndarray) -> str:
        bottom, top = (ends[channel if len(ends) > 1 else 0] for ends in (units.low, units.high))
        return f": need a number from {bottom} to {top}"

    return bad, of_interval


def _ends(units: Interval, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds, infinite where a side is open, in the type of ``rows`` so that its rounding does no harm."""
    kind = rows.dtype if rows.dtype.kind == "f" else np.float64
    return np.array(units.low, kind)[:, None], np.array(units.high, kind)[:, None]


def _column(arrays: Arrays, channel: SupportsIndex) -> str:
    if arrays.columns:
        return f"column {printable(arrays.columns[channel])}"
    return f"{'column' if arrays.x.ndim == 2 else 'channel'} {channel}"

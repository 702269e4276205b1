"""The known values of samples whose other values run_vis.py fills in: given=FILE and mask=FILE."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.image_io import SUFFIXES, UnreadableError, read_image
from datasets.units import Composition, Interval, Units
from evaluation.read_samples import array_names, open_arrays, read_array
from sampling.images import GREY
from utils.errors import InputError

ARRAYS = "arrays of given values or a mask, an .npz or .npy file"
NAMES = ("", "samples", "mask", "arr_0")  # of the array in a file, the first of them that it has


@dataclass(frozen=True)
class Given:
    """Values of which some are known, for sample i those of row i % N.

    Attributes:
        values: values as in the files of samples: images, uint8 (N, H, W, C), or others, (N, *shape), in their units.
        known: which of them are known, bool in the shape of ``values``.
        points: values in the cube, (N, *shape of a sample), of which the unknown ones mean nothing.
        points_known: ``known`` in the shape of ``points``.
    """

    values: np.ndarray
    known: np.ndarray
    points: Tensor
    points_known: Tensor

    def rows(self, numbers: range) -> list[int]:
        """Return the rows of the samples with these numbers."""
        return [number % len(self.values) for number in numbers]

    def restore(self, samples: np.ndarray, numbers: range) -> np.ndarray:
        """Return ``samples`` with the known values exactly as given, which a map to the cube and back may round."""
        rows = self.rows(numbers)
        return np.where(self.known[rows], self.values[rows], samples).astype(samples.dtype)

    def picture(self, numbers: range) -> np.ndarray:
        """Return the given images of the samples with these numbers, grey where they are not known."""
        rows = self.rows(numbers)
        return np.where(self.known[rows], self.values[rows], np.uint8(GREY))


def read_given(path: str, mask: str | None, shape: tuple[int, ...], is_image: bool, units: Units | None) -> Given:
    """Read the known values of samples.

    Args:
        path: option ``given``.
        mask: option ``mask``; None if all values that are not NaN are known.
        shape: shape of a sample in the cube, (C, H, W) of an image.
        is_image: whether the samples are images.
        units: units of other samples; None for values in the cube.

    Raises:
        InputError: naming the option and the fault.
    """
    if isinstance(units, Composition):
        raise InputError(f"given={path}: the parts of a composition depend on each other, and cannot be given singly")
    stored_shape = (*shape[1:], shape[0]) if is_image else shape
    values = _read(f"given={path}", Path(path), shape[0] if is_image else None)
    if is_image and values.dtype != np.uint8:
        raise InputError(f"given={path} holds {values.dtype} {values.shape}: need images, uint8 (N, H, W, C)")
    if values.shape == stored_shape:
        values = values[None]
    if values.shape[1:] != stored_shape or not len(values):
        raise InputError(f"given={path} has the shape {values.shape}: need (N, {str(stored_shape)[1:]}")
    known = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    if mask is not None:
        told = _read_mask(mask, stored_shape, len(values), is_image)
        if (told & ~known).any():
            place = tuple(map(int, np.argwhere(told & ~known)[0]))
            raise InputError(f"given={path} is NaN at {place}, where mask={mask} says that it is known")
        known = told
    elif known.all():
        raise InputError(f"given={path}: say what is known, mask=FILE" + ", or NaN for what is not" * (not is_image))
    if not known.any():
        raise InputError(f"given={path}: no value is known")
    if not is_image:
        _check_bounds(path, values, known, units)
    points = torch.from_numpy(np.ascontiguousarray(values))
    if is_image:
        points = points.movedim(-1, 1).float() / 255.0
    else:
        points = units.to_cube(points) if units is not None else points.float()
    points_known = torch.from_numpy(known)
    return Given(values, known, points, points_known.movedim(-1, 1) if is_image else points_known)


def _read(option: str, path: Path, num_channels: int | None) -> np.ndarray:
    """Read an array of numbers, or an image of so many channels if that is not None."""
    if num_channels is not None and path.suffix.lower() in SUFFIXES:
        try:
            return read_image(path, None, num_channels)
        except UnreadableError as error:
            raise InputError(f"{option} cannot be read: {error}") from error
    stored = open_arrays(path, ARRAYS)
    name = next((name for name in NAMES if name in stored.arrays), None)
    if name is None:
        raise InputError(f"{option}: found arrays {array_names(stored)}; need samples, mask or arr_0")
    shape, dtype = stored.arrays[name]
    if dtype.kind not in "biuf":
        raise InputError(f"{option} holds {dtype} {shape}: need numbers")
    return read_array(stored, name)


def _read_mask(mask: str, shape: tuple[int, ...], number: int, is_image: bool) -> np.ndarray:
    """Read what is known of ``number`` samples of ``shape``, bool (number, *shape)."""
    told = _read(f"mask={mask}", Path(mask), 1 if is_image else None) != 0
    of_pixels = (*shape[:-1], 1) if is_image else shape
    for one in {shape, of_pixels}:
        for found in (told, told[..., None]) if is_image else (told,):
            if found.shape == one or (found.shape[1:] == one and len(found) == number):
                return np.broadcast_to(found, (number, *shape))
    raise InputError(f"mask={mask} has the shape {told.shape}: need {shape}, or one for each of {number} given samples")


def _check_bounds(path: str, values: np.ndarray, known: np.ndarray, units: Units | None) -> None:
    """Raise InputError, naming the first value at fault, unless the known values are finite and in their bounds."""
    lows, highs = (units.low, units.high) if isinstance(units, Interval) else ((0.0,), (1.0,))
    kind = values.dtype if values.dtype.kind == "f" else np.float64  # a bound is rounded as the values are
    low, high = (np.array(ends, kind).reshape(-1, *[1] * (values.ndim - 2)) for ends in (lows, highs))
    if isinstance(units, Interval) and units.levels is not None:
        for place in np.argwhere(known & (values != np.round(values)))[:1]:
            raise InputError(f"given={path} is {values[tuple(place)]} at {tuple(map(int, place))}: need an integer")
    for place in np.argwhere(known & ~(np.isfinite(values) & (values >= low) & (values <= high)))[:1]:
        channel = place[1] if len(lows) > 1 else 0
        raise InputError(
            f"given={path} is {values[tuple(place)]} at {tuple(map(int, place))}: need a number from {lows[channel]:g} "
            f"to {highs[channel]:g}"
        )

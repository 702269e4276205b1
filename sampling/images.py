"""Conversion of samples to 8-bit images; grids, single files and animations of them."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.units import Units
from utils.errors import UserError

MIN_TILE = 40  # pixels of width; narrower images are enlarged in a grid, for a person to read
GAP, GREY = 2, 128  # width in pixels and value of the frame around the images of a grid
FRAME, LAST_FRAME = 100, 1500  # duration in milliseconds of the frames of an animation


def to_array(x: Tensor, image: bool, units: Units | None = None, sigma: float = 0.0) -> np.ndarray:
    """Convert samples to what their file holds: images as ``to_uint8`` does, others to the units of their data.

    Args:
        x: samples, (N, *shape).
        image: whether they are images.
        units: units of other samples; None: float32 as they are.
        sigma: noise that is left in the samples, by which values on a bound are told, see ``Units.snap``.

    Raises:
        UserError: if a value is not finite.
    """
    if image:
        return to_uint8(x)
    _check_finite(x)
    x = x.detach().float().cpu()
    return (x if units is None else units.from_cube(units.snap(x, sigma))).numpy()


def to_trajectory(states: Tensor, image: bool, units: Units | None = None) -> np.ndarray:
    """Convert a trajectory, (K, N, *shape), as ``to_array`` converts samples."""
    arrays = to_array(states.flatten(0, 1), image, units)
    return arrays.reshape(*states.shape[:2], *arrays.shape[1:])


def share_outside(x: Tensor) -> np.ndarray:
    """Compute for each image of ``x`` (N, ...) the share of its values outside [0, 1], float32 (N,)."""
    return ((x < 0.0) | (x > 1.0)).flatten(1).float().mean(1).cpu().numpy()


def to_uint8(x: Tensor) -> np.ndarray:
    """Clip images (..., C, H, W) to [0, 1] and round them to the nearest of 256 levels, uint8 (..., H, W, C).

    Raises:
        UserError: if a value is not finite.
    """
    _check_finite(x)
    levels = (x.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return levels.movedim(-3, -1).cpu().numpy()


def _check_finite(x: Tensor) -> None:
    if not x.isfinite().all():
        raise UserError("the samples are not finite: try a smaller w, or more sampling.steps")


def grid(pixels: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Arrange images uint8 (N, H, W, C) row by row in one picture, uint8 (H', W', 3).

    Args:
        pixels: images with any number of channels, see ``_as_rgb``.
        columns: images in a row; None: ceil(sqrt(N)).
    """
    from torchvision.utils import make_grid  # heavy import, only where used

    tiles = torch.tensor(_as_rgb(pixels)).movedim(-1, 1)
    enlarge = max(1, math.ceil(MIN_TILE / tiles.shape[-1]))
    tiles = tiles.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    if len(tiles) == 1:  # which make_grid leaves without a frame
        picture = F.pad(tiles[0], [GAP] * 4, value=GREY)
    else:
        picture = make_grid(tiles, columns or math.ceil(math.sqrt(len(tiles))), GAP, pad_value=GREY)
    return picture.movedim(0, -1).numpy()


def save_grid(pixels: np.ndarray, path: Path, columns: int | None = None) -> None:
    """Write the ``grid`` of images uint8 (N, H, W, C) as a PNG."""
    Image.fromarray(grid(pixels, columns)).save(path, format="PNG")


def save_each(pixels: np.ndarray, folder: Path, first: int) -> None:
    """Write each image as ``folder``/NUMBER.png in its own size, with alpha if it has 4 channels.

    Args:
        pixels: images uint8 (N, H, W, C).
        folder: directory of the files, which is made if it does not exist.
        first: number of the first image.
    """
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(pixels if pixels.shape[-1] == 4 else _as_rgb(pixels), start=first):
        Image.fromarray(image).save(folder / f"{number:06d}.png")


def save_trajectory(moments: np.ndarray, path: Path) -> None:
    """Write the trajectories of N images as a grid PATH.png, one row an image, and as an animation PATH.gif.

    Of samples that are no images, write the array PATH.npy.

    Args:
        moments: the images at K moments, uint8 (K, N, H, W, C), or other samples, float32 (K, N, *shape).
        path: name of the files without its suffix.
    """
    if moments.dtype != np.uint8:
        np.save(path.with_suffix(".npy"), moments)
        return
    by_image = moments.swapaxes(0, 1).reshape(-1, *moments.shape[2:])
    save_grid(by_image, path.with_suffix(".png"), columns=len(moments))
    frames = [Image.fromarray(grid(images)) for images in moments]
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Convert images (N, H, W, C) to RGB: 4 channels are RGB and alpha, on white; others are averaged to grey."""
    if pixels.shape[-1] == 3:
        return pixels
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:] / 255.0
        return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    grey = np.rint(pixels.mean(-1, keepdims=True)).astype(np.uint8)
    return grey.repeat(3, -1)

"""Samples as pictures and arrays."""

import math
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, uint8

from utils.errors import UserError

MIN_TILE = 40  # pixels; smaller images are enlarged in a grid so that a person can read them
GAP, GREY = 2, 128  # between the tiles of a grid
FRAME, LAST_FRAME = 100, 1500  # milliseconds of an animation


def to_uint8(x: Tensor) -> np.ndarray:
    """Images in [0, 1], (..., C, H, W), to the nearest of 256 levels, uint8 (..., H, W, C).

    Raises:
        UserError: if a value is not finite.
    """
    if not x.isfinite().all():
        raise UserError("the samples are not finite: try a smaller w, or more sampling.steps")
    levels = (x.detach().clamp(0.0, 1.0) * 255.0).round().to(uint8)
    return levels.movedim(-3, -1).cpu().numpy()


def grid(pixels: np.ndarray, columns: int | None = None) -> np.ndarray:
    """One picture of images uint8 (N, H, W, C), row by row; ``columns`` is sqrt(N) unless given; uint8 (H', W', 3)."""
    colours = _as_rgb(pixels)
    enlarge = max(1, math.ceil(MIN_TILE / pixels.shape[2]))
    tiles = colours.repeat(enlarge, 1).repeat(enlarge, 2)
    n, height, width, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(n))
    picture = np.full((GAP + math.ceil(n / columns) * (height + GAP), GAP + columns * (width + GAP), 3), GREY, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        picture[top : top + height, left : left + width] = tile
    return picture


def save_grid(pixels: np.ndarray, path: Path, columns: int | None = None) -> None:
    """Write ``grid`` as a PNG."""
    Image.fromarray(grid(pixels, columns)).save(path)


def save_each(pixels: np.ndarray, folder: Path, first: int) -> None:
    """Write every image as ``folder``/NUMBER.png, counted from ``first``, in its own size; 4 channels with alpha."""
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(pixels if pixels.shape[-1] == 4 else _as_rgb(pixels), start=first):
        Image.fromarray(image).save(folder / f"{number:06d}.png")


def save_trajectory(moments: np.ndarray, path: Path) -> None:
    """Write moments of images, uint8 (K, N, H, W, C), as a strip PATH.png, an image a row, and a moving PATH.gif."""
    by_image = moments.swapaxes(0, 1).reshape(-1, *moments.shape[2:])
    save_grid(by_image, path.with_suffix(".png"), columns=len(moments))
    frames = [Image.fromarray(grid(images)) for images in moments]
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Three channels as they are; four are RGB and alpha, laid on white; of any other number the mean, in grey."""
    if pixels.shape[-1] == 3:
        return pixels
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:] / 255.0
        return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    grey = np.rint(pixels.mean(-1, keepdims=True)).astype(np.uint8)
    return grey.repeat(3, -1)

"""Samples as pictures and arrays."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from errors import CleanError

MIN_TILE = 40  # pixels; smaller images are enlarged in a grid so that a person can read them


def to_uint8(x: Tensor) -> np.ndarray:
    """Images in [0, 1], (N, C, H, W), to the nearest of 256 levels, uint8 (N, H, W, C).

    Raises:
        CleanError: if a value is not finite.
    """
    if not x.isfinite().all():
        raise CleanError("the samples are not finite: try a smaller w, or more sampling.steps")
    levels = (x.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def save_grid(x: Tensor, path: Path, columns: int | None = None) -> None:
    """Write images in [0, 1], (N, C, H, W), as one PNG, row by row; ``columns`` is sqrt(N) unless given."""
    enlarge = max(1, math.ceil(MIN_TILE / x.shape[-1]))
    x = x.detach().cpu().repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    columns = columns or math.ceil(math.sqrt(x.shape[0]))
    save_image(make_grid(x, nrow=columns, padding=2, pad_value=0.5), path)

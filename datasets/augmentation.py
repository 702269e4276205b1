"""Geometric augmentation of images whose parameters the network is told, so that it does not leak into samples.

The augmentation of EDM (Karras et al. 2022, appendix F.2): a network that is told what was done to each training image
draws images to which nothing was done, when it is told nothing.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENT_SIZE = 9  # values that describe the augmentation of an image
SCALE_STD = 0.2  # of the binary logarithm of the size, and of the stretch along an axis
TRANSLATION_STD = 0.125  # in units of the side


def augment(images: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Mirror, scale, rotate, stretch and move images at random, with torch's default generator.

    Each image is mirrored left to right with probability 1/2 and top to bottom with probability ``p`` / 2; with
    probability ``p`` each, independently, it is scaled, rotated by any angle, stretched along one axis and compressed
    across it, and moved. Images are continued by their reflections at the border, as the process continues their
    values, and interpolated bilinearly, which keeps these in [0, 1]. Mirroring alone changes no value.

    Args:
        images: images, float32 (B, C, H, W) in [0, 1].
        p: probability in [0, 1].

    Returns:
        The augmented images, (B, C, H, W); and what was done, float32 (B, ``AUGMENT_SIZE``), zeros for nothing:
        mirrored left to right; top to bottom; log2 of the size / 0.2; cosine - 1 and sine of the rotation; log2 of the
        stretch / 0.2 times cosine and sine of twice the angle of its axis; movement to the right and down in units of
        0.125 sides.
    """
    number, device = len(images), images.device

    def normal(columns: int) -> Tensor:
        """Draw normal numbers for each image with probability ``p``, else zeros, (B, columns)."""
        chosen = torch.rand(number, 1, device=device) < p
        return torch.where(chosen, torch.randn(number, columns, device=device), 0.0)

    mirrored = torch.rand(number, 2, device=device) < torch.tensor([0.5, p / 2], device=device)
    size = normal(1)[:, 0]
    rotated = torch.rand(number, device=device) < p
    angle = torch.where(rotated, (2.0 * torch.rand(number, device=device) - 1.0) * math.pi, 0.0)
    stretch, axis = normal(1)[:, 0], (2.0 * torch.rand(number, device=device) - 1.0) * math.pi
    movement = normal(2)

    for column, dimension in enumerate((-1, -2)):
        images = torch.where(mirrored[:, column, None, None, None], images.flip(dimension), images)
    # Each position of the result is mapped back to one of the image: move, rotate, scale and stretch, in reverse.
    back = _rotation(axis) @ torch.diag_embed(torch.exp2(-SCALE_STD * torch.stack([stretch, -stretch], 1)))
    back = back @ _rotation(-axis) * torch.exp2(-SCALE_STD * size)[:, None, None] @ _rotation(-angle)
    offset = -back @ (2.0 * TRANSLATION_STD * movement)[:, :, None]  # positions are from -1 to 1
    grid = F.affine_grid(torch.cat([back, offset], 2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).clamp(0.0, 1.0)

    # Twice the angle of the axis, because a compression along one axis is a stretch along the other.
    parts = [size, angle.cos() - 1.0, angle.sin(), stretch * (2.0 * axis).cos(), stretch * (2.0 * axis).sin()]
    done = torch.cat([torch.stack(parts, 1), movement], 1)
    images = torch.where((done != 0).any(1)[:, None, None, None], moved, images)
    return images, torch.cat([mirrored.to(done.dtype), done], 1)


def _rotation(angle: Tensor) -> Tensor:
    """Return the matrices (B, 2, 2) that turn (right, down) by angles (B,), clockwise as seen on the screen."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)

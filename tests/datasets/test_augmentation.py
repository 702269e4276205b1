"""Augmentation that the network is told: what was done is what the parameters say."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from datasets.augmentation import AUGMENT_SIZE, augment


def repeat(image, told):
    """Augment an image (H, W) as the parameters ``told`` say, by scipy's interpolation."""
    for axis, mirrored in zip((1, 0), told[:2], strict=True):
        image = np.flip(image, axis) if mirrored else image
    size, cos, sin, along_x, along_y, right, down = told[2:]
    angle, axis = math.atan2(sin, cos + 1), math.atan2(along_y, along_x) / 2
    stretch = 2 ** (0.2 * math.hypot(along_x, along_y))

    def turn(a):  # of (down, right)
        return np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])

    stretched = turn(axis) @ np.diag([1 / stretch, stretch]) @ turn(-axis)  # across the axis, along it
    forth = turn(angle) @ (2 ** (0.2 * size) * stretched)
    centre, moved = (np.array(image.shape) - 1) / 2, 0.125 * image.shape[0] * np.array([down, right])
    back = np.linalg.inv(forth)
    return ndimage.affine_transform(image, back, centre - back @ (centre + moved), order=1, mode="reflect")


def test_what_was_done_is_what_the_network_is_told():
    torch.manual_seed(3)
    images = torch.rand(60, 2, 12, 12)
    augmented, told = augment(images, 0.7)
    assert told.shape == (60, AUGMENT_SIZE) and augmented.shape == images.shape
    for before, after, parameters in zip(images, augmented, told.double(), strict=True):
        for channel in range(2):
            expected = repeat(before[channel].double().numpy(), parameters.tolist())
            np.testing.assert_allclose(after[channel], expected, atol=2e-5)
    assert augmented.min() >= 0 and augmented.max() <= 1


def test_images_to_which_nothing_was_done_are_the_same_bits():
    torch.manual_seed(0)
    images = torch.rand(4000, 1, 4, 4)
    augmented, told = augment(images, 0.12)
    still = (told == 0).all(1)
    assert torch.equal(augmented[still], images[still])
    mirrored = (told[:, 0] == 1) & (told[:, 1:] == 0).all(1)
    assert torch.equal(augmented[mirrored], images[mirrored].flip(-1))
    changed = (told != 0).double().mean(0)
    expected = torch.tensor([0.5, 0.06, *[0.12] * 7], dtype=torch.float64)
    assert ((changed - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt()).all()
    assert still.double().mean().item() == pytest.approx(0.5 * 0.94 * 0.88**4, abs=0.03)


def test_the_laws_of_the_parameters():
    torch.manual_seed(1)
    told = augment(torch.zeros(20_000, 1, 2, 2), 1.0)[1].double()
    for column in (2, 7, 8):
        assert abs(told[:, column].mean().item()) < 0.03 and abs(told[:, column].std().item() - 1) < 0.03
    angle = torch.atan2(told[:, 4], told[:, 3] + 1)
    assert angle.abs().mean().item() == pytest.approx(math.pi / 2, abs=0.03), "uniform from -pi to pi"
    assert told[:, 5:7].square().sum(1).mean().item() == pytest.approx(1, abs=0.04)
    assert (told[:, 5] * told[:, 6]).mean().abs().item() < 0.03

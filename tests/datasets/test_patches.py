"""Patches of photographs: their positions, their pixels, and files that are missing."""

import itertools
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import load_images
from datasets.registry import DATASETS
from utils.errors import InputError

module = sys.modules[DATASETS["patches"].__module__]
PHOTOGRAPHS = ("china", "flower", "astronaut", "cat", "coffee", "rocket")


def load(train, size=16, **options):
    return load_images("patches", train, image_size=size, num_channels=3, num_classes=6, **options)


def covered(shape, size, train):
    """Return the pixels of a photograph that are in some patch."""
    mask = np.zeros(shape, bool)
    for row, column in zip(*module.corners(shape, size, train), strict=True):
        assert row >= 0 and column >= 0 and row + size <= shape[0] and column + size <= shape[1]
        mask[row : row + size, column : column + size] = True
    return mask


@pytest.mark.parametrize("shape", [(213, 320), (150, 226), (41, 83), (9, 40), (40, 240)])
@pytest.mark.parametrize("size", [1, 2, 5, 8, 16])
def test_no_pixel_is_in_both_splits(shape, size):
    trained, held_out = (covered(shape, size, train) for train in (True, False))
    assert not (trained & held_out).any()
    fits = shape[0] >= size and shape[1] >= 5 * size
    assert trained.any() == held_out.any() == fits
    if fits:
        assert set(np.unique(np.flatnonzero(held_out.any(0)) % (5 * size))) == set(range(4 * size, 5 * size))


def test_patches_are_squares_of_the_photographs():
    for train, size in itertools.product((True, False), (16, 32)):
        images = load(train, size)
        assert images.shape == (3, size, size) and images.data.dtype == torch.uint8 and images.levels == 256
        assert images.class_names == PHOTOGRAPHS and images.data.is_contiguous()
        label = PHOTOGRAPHS.index("cat")
        photograph = module.read_photograph("cat")
        own = images.data[images.labels == label]
        top, left = module.corners(photograph.shape[:2], size, train)
        cut = [photograph[i : i + size, j : j + size].tobytes() for i, j in zip(top, left, strict=True)]
        found = [patch.movedim(0, -1).numpy().tobytes() for patch in own]
        assert sorted(found) == sorted(cut) and found != cut
        assert len(images.labels[:100].unique()) == len(PHOTOGRAPHS)  # in random order
        assert torch.equal(images.data, load(train, size).data)


def test_their_numbers():
    counts = {(size, train): len(load(train, size)) for size in (16, 32) for train in (True, False)}
    assert counts == {(16, True): 13963, (16, False): 992, (32, True): 12464, (32, False): 406}
    assert load(True).labels.bincount().tolist() == [2600, 2600, 2440, 1326, 2397, 2600]
    assert load(False).labels.bincount().tolist() == [200, 200, 183, 68, 141, 200]


def test_photographs_are_averaged_over_squares():
    _, package, file = module.PHOTOGRAPHS["coffee"]
    path = module.Path(module.find_spec(package).origin).parent / file
    whole = np.asarray(Image.open(path)).astype(float)
    assert whole.shape == (400, 600, 3)
    means = whole.reshape(200, 2, 300, 2, 3).mean((1, 3))
    assert np.abs(module.read_photograph("coffee") - means).max() <= 0.5


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (("scikit-image", "skimage", "data/eagle.png"), r"data/eagle\.png, a file of scikit-image, cannot be read"),
        (("scikit-image", "skimage", "data/README.txt"), r"README\.txt, a file of scikit-image, cannot be read"),
        (("no-images", "no_images", "data/a.png"), "the package no-images is missing: pip install no-images$"),
    ],
)
def test_a_missing_file_ends_in_one_line(monkeypatch, file, message):
    """eagle.png is one of those that scikit-image would download."""
    monkeypatch.setitem(module.PHOTOGRAPHS, "coffee", file)
    with pytest.raises(InputError, match=f"data.dataset=patches: .*{message}") as refusal:
        load(True)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 64}, "data.image_size=64: the photograph astronaut of 256x256 pixels is too small"),
        ({"num_channels": 1}, "data.num_channels and data.image_size ask for"),
        ({"num_classes": 5}, "data.num_classes=5, but data.dataset=patches has 6"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        load_images("patches", True, **{"image_size": 16, "num_channels": 3, "num_classes": 6} | options)

"""Square patches of the colour photographs that scikit-learn and scikit-image are shipped with."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.images import ImageDataset
from utils.errors import InputError

# name: package, and the file in it. The files are read by their paths, because scikit-image's functions download a
# file that is missing.
PHOTOGRAPHS = {
    "china": ("scikit-learn", "sklearn", "datasets/images/china.jpg"),
    "flower": ("scikit-learn", "sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("scikit-image", "skimage", "data/astronaut.png"),
    "cat": ("scikit-image", "skimage", "data/chelsea.png"),
    "coffee": ("scikit-image", "skimage", "data/coffee.png"),
    "rocket": ("scikit-image", "skimage", "data/rocket.jpg"),
}
REDUCTION = 2  # pixels of a photograph along a side of the square that is averaged into one
STRIDE = 4  # pixels between neighbouring patches, in both directions
TRAINED_WIDTHS = 4  # width of a training strip, in widths of a patch; that of a held-out strip is one


def patches(train: bool, image_size: int, **_: object) -> ImageDataset:
    """Cut patches of six photographs of half size; the class of a patch is its photograph.

    Each photograph is divided into vertical strips, by turns four patches wide to train on and one patch wide and held
    out. A patch lies within one strip, so that no pixel is in both splits. The order is random and fixed, so that
    the first patches are of all photographs.

    Args:
        train: whether to cut the training patches instead of the held-out ones.
        image_size: height and width of a patch.

    Raises:
        InputError: if a file is missing or cannot be read, or a photograph has no place for a held-out patch.
    """
    cut, labels = [], []
    for label, name in enumerate(PHOTOGRAPHS):
        photograph = read_photograph(name)
        top, left = corners(photograph.shape[:2], image_size, train)
        if not len(top):
            height, width = photograph.shape[:2]
            raise InputError(
                f"data.image_size={image_size}: the photograph {name} of {width}x{height} pixels is too small, need "
                f"a width of {TRAINED_WIDTHS + 1} patches and a height of one"
            )
        windows = np.lib.stride_tricks.sliding_window_view(photograph, (image_size, image_size), axis=(0, 1))
        cut.append(windows[top, left])
        labels.append(np.full(len(top), label))
    order = np.random.RandomState(0).permutation(sum(map(len, labels)))
    pixels, classes = (torch.from_numpy(np.concatenate(parts)[order]) for parts in (cut, labels))
    return ImageDataset(pixels.contiguous(), classes, len(PHOTOGRAPHS), class_names=tuple(PHOTOGRAPHS))


def read_photograph(name: str) -> np.ndarray:
    """Read a photograph of ``PHOTOGRAPHS``, and average squares of ``REDUCTION`` x ``REDUCTION`` pixels.

    Returns:
        Its pixels, uint8 (H, W, 3).

    Raises:
        InputError: if the file is missing or cannot be read.
    """
    distribution, package, file = PHOTOGRAPHS[name]
    spec = find_spec(package)  # does not import it
    if spec is None or spec.origin is None:
        raise InputError(f"data.dataset=patches: the package {distribution} is missing: pip install {distribution}")
    path = Path(spec.origin).parent / file
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").reduce(REDUCTION))
    except OSError as error:
        raise InputError(
            f"data.dataset=patches: {path}, a file of {distribution}, cannot be read ({error}): pip install "
            f"--force-reinstall --no-deps {distribution}"
        ) from error


def corners(shape: tuple[int, ...], size: int, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the patches of a photograph.

    Args:
        shape: height and width of the photograph.
        size: height and width of a patch.
        train: whether to return the training patches instead of the held-out ones.

    Returns:
        First row and first column of each patch, int64 (N,) each; N is 0 for a photograph that is too small.
    """
    height, width = shape
    period = (TRAINED_WIDTHS + 1) * size  # of a training strip and a held-out strip
    if width < period:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows, columns = np.arange(0, height - size + 1, STRIDE), np.arange(width - size + 1)
    within = columns % period  # place of the first column in its period
    last = TRAINED_WIDTHS * size - size  # place of the last patch in a training strip
    columns = columns[(within <= last) & (within % STRIDE == 0) if train else within == last + size]
    top, left = np.meshgrid(rows, columns, indexing="ij")
    return top.ravel(), left.ravel()

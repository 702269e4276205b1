"""ImageNet at 32x32 and at 64x64, from the files that the scripts in this folder prepare."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datasets.cache import Part, fingerprint, open_cached
from datasets.cached_images import cache_images, cache_path
from datasets.decode import DecodeOptions
from datasets.find import find_images
from datasets.images import ImageDataset
from utils.archives import BROKEN, ArrayFile
from utils.errors import InputError


def imagenet32(
    train: bool, image_size: int, num_channels: int, classes: bool, dataroot: str, **_: object
) -> ImageDataset:
    """Load ImageNet at 32x32 from ``dataroot``/ds_imagenet/{train_32x32,valid_32x32}, PNGs or the npz of image-net.org.

    The PNGs have no classes; the npz have the 1,000 of ImageNet.

    Raises:
        InputError: if the files are missing, or do not match the configuration.
    """
    base = Path(dataroot) / "ds_imagenet" / ("train_32x32" if train else "valid_32x32")
    arrays, files = sorted(base.glob("*.npz")), find_images(base) if base.is_dir() else []
    if not arrays and not files:
        raise InputError(f"{base} has no images: sh datasets/download_imagenet32.sh fetches them")
    if (image_size, num_channels) != (32, 3):
        raise InputError(f"data.image_size={image_size}, data.num_channels={num_channels}: imagenet32 has 32 and 3")
    if arrays:
        made_of = fingerprint(arrays, base)
        path = cache_path(base, train, dataroot)
        return open_cached(path, made_of, (3, 32, 32), 0, partial(read_arrays, arrays), 1000)
    if classes:
        raise InputError(f"data.classes=True, but the PNGs of {base} have no classes")
    return cache_images(base, files, np.zeros(len(files), np.int64), train, DecodeOptions(32), 1, dataroot)


def imagenet64c(
    train: bool, image_size: int, num_channels: int, num_classes: int, dataroot: str, **_: object
) -> ImageDataset:
    """Load ImageNet with its classes from ``dataroot``/imagenet-64x64/{train,valid} with PNGs and dataset.json.

    Raises:
        InputError: if dataset.json is missing or was not written by datasets/compile_imagenet64.py.
    """
    base = Path(dataroot) / "imagenet-64x64" / ("train" if train else "valid")
    listing = base / "dataset.json"
    if not listing.is_file():
        raise InputError(f"{listing} is not there: python datasets/compile_imagenet64.py /path/to/imagenet makes it")
    try:
        pairs = json.loads(listing.read_text())["labels"]
        names, labels = [str(name) for name, _ in pairs], np.array([label for _, label in pairs])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{listing} cannot be read: {error}") from error
    whole = len(names) > 0 and labels.dtype.kind == "i" and labels.min() >= 0 and labels.max() < num_classes
    if not whole:
        raise InputError(f"{listing} does not name images and their classes, 0 to data.num_classes={num_classes} - 1")
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{listing} names a file outside of its folder: {name}")
    files = [base / name for name in names]
    return cache_images(base, files, labels, train, DecodeOptions(image_size, num_channels), num_classes, dataroot)


def read_arrays(paths: Sequence[Path]) -> Iterator[Part]:
    """Yield the images and labels in npz files of downsampled ImageNet, file by file; stored labels count from 1.

    Raises:
        InputError: naming a file that is not an array of downsampled ImageNet.
    """
    for path in paths:
        try:
            stored = ArrayFile(path)
            shape, dtype = stored.arrays["data"]
            if dtype != np.uint8 or shape != (*stored.arrays["labels"][0], 3072):
                raise ValueError(f"data is {dtype} {shape}")
            pixels, labels = stored.read("data"), stored.read("labels").astype(np.int64)
            if not (labels.min() >= 1 and labels.max() <= 1000):
                raise ValueError("labels are not 1 to 1000")
        except BROKEN as error:
            raise InputError(f"{path} is not an array of downsampled ImageNet: {error}") from error
        yield pixels.reshape(-1, 3, 32, 32), labels - 1, []

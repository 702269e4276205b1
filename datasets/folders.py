"""Data sets that are folders of image files, packed once."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from datasets.images import Images
from datasets.pack import Part, fingerprint, packed
from datasets.prepare import cores, find_images, read_images
from errors import InputError

HELD_OUT = ("valid", "val", "validation", "test")  # what the folder of held-out images may be called, beside train
EVERY = 10  # without one, every tenth image is held out


def folder(
    train: bool, root: str | None, image_size: int, num_channels: int, num_classes: int, classes: bool, dataroot: str
) -> Images:
    """The images in a folder and below, whatever their format and size.

    ``root``/train and ``root``/valid (or val, validation, test) are the splits if both are there; otherwise every tenth
    image in the order of their paths is held out. With ``classes`` the folders in a split are the classes, numbered in
    the order of the names of those to train on.

    Raises:
        InputError: naming the key or the file at fault.
    """
    if root is None:
        raise InputError("data.root is missing: say data.root=PATH, a folder of images")
    top = Path(root)
    if not top.is_dir():
        raise InputError(f"data.root={root} is not a folder")
    held_out = [top / name for name in HELD_OUT if (top / name).is_dir()]
    if (top / "train").is_dir() and held_out:
        bases = (top / "train", held_out[0])
        splits = [find_images(base) for base in bases]
    else:
        bases, found = (top, top), find_images(top)
        splits = [[path for i, path in enumerate(found) if (i % EVERY == EVERY - 1) != part] for part in (True, False)]
    for files, base, what in zip(splits, bases, ("to train on", "to hold out"), strict=True):
        if not files:
            raise InputError(f"data.root={root}: {base} has no images {what} (.png, .jpg, ...; {EVERY} or more)")
    files, base = (splits[0], bases[0]) if train else (splits[1], bases[1])
    labels = np.zeros(len(files), np.int64)
    if classes:
        names = sorted({_class_name(path, bases[0]) for path in splits[0]})
        if len(names) != num_classes:
            raise InputError(f"data.num_classes={num_classes}, but {bases[0]} has {len(names)} folders of images")
        numbers = {name: number for number, name in enumerate(names)}
        for path in files:
            if _class_name(path, base) not in numbers:
                raise InputError(f"{path} is of a class that {bases[0]} does not have")
        labels = np.array([numbers[_class_name(path, base)] for path in files])
    return _pack(top, files, labels, train, image_size, num_channels, num_classes if classes else 1, dataroot)


def imagenet32(train: bool, image_size: int, num_channels: int, classes: bool, dataroot: str, **_: object) -> Images:
    """ImageNet at 32x32: ``dataroot``/ds_imagenet/{train_32x32,valid_32x32}, PNGs or the npz of image-net.org.

    The PNGs have no classes; the npz have the 1,000 of ImageNet.

    Raises:
        InputError: if it is not there, or not what the configuration says.
    """
    base = Path(dataroot) / "ds_imagenet" / ("train_32x32" if train else "valid_32x32")
    arrays, files = sorted(base.glob("*.npz")), find_images(base) if base.is_dir() else []
    if not arrays and not files:
        raise InputError(f"{base} has no images: sh datasets/download_imagenet32.sh fetches them")
    if (image_size, num_channels) != (32, 3):
        raise InputError(f"data.image_size={image_size}, data.num_channels={num_channels}: imagenet32 has 32 and 3")
    if arrays:
        made_of = fingerprint(arrays, base)
        path = _pack_path(base, train, dataroot)
        return packed(path, made_of, (3, 32, 32), 0, partial(read_arrays, arrays), 1000)
    if classes:
        raise InputError(f"data.classes=True, but the PNGs of {base} have no classes")
    return _pack(base, files, np.zeros(len(files), np.int64), train, 32, 3, 1, dataroot)


def imagenet64c(
    train: bool, image_size: int, num_channels: int, num_classes: int, dataroot: str, **_: object
) -> Images:
    """ImageNet with its classes: ``dataroot``/imagenet-64x64/{train,valid} with PNGs and dataset.json.

    Raises:
        InputError: if it is not there, or dataset.json is not what datasets/compile_imagenet64.py writes.
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
    return _pack(base, files, labels, train, image_size, num_channels, num_classes, dataroot)


def _pack(
    root: Path,
    files: Sequence[Path],
    labels: np.ndarray,
    train: bool,
    image_size: int,
    num_channels: int,
    num_classes: int,
    dataroot: str,
) -> Images:
    """The pack of some files below ``root`` with their labels, (len(files),)."""

    def parts() -> Iterator[Part]:
        for pixels, good, bad in read_images(files, image_size, num_channels, cores()):
            yield pixels, labels[good], [(str(path.relative_to(root)), reason) for path, reason in bad]

    try:
        made_of = fingerprint(files, root, image_size, num_channels, hashlib.sha256(labels.tobytes()).hexdigest())
    except OSError as error:
        raise InputError(f"{error.filename} is not there") from error
    path = _pack_path(root, train, dataroot, image_size, num_channels, num_classes)
    return packed(path, made_of, (num_channels, image_size, image_size), len(files), parts, num_classes)


def _pack_path(root: Path, train: bool, dataroot: str, *options: object) -> Path:
    key = hashlib.sha256(repr((str(root.resolve()), options)).encode()).hexdigest()[:8]
    return Path(dataroot) / "packs" / f"{root.resolve().name}-{key}-{'train' if train else 'held_out'}.safetensors"


def _class_name(path: Path, base: Path) -> str:
    parts = path.relative_to(base).parts
    if len(parts) < 2:
        raise InputError(f"{path} is in no folder of a class below {base}: use data.classes=False, or move it")
    return parts[0]


def read_arrays(paths: Sequence[Path]) -> Iterator[Part]:
    """The images in npz files of downsampled ImageNet, file by file; their labels count from 1.

    Raises:
        InputError: naming a file that is not one.
    """
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                pixels, labels = arrays["data"], np.asarray(arrays["labels"], dtype=np.int64)
            if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
                raise ValueError(f"data is {pixels.dtype} {pixels.shape}")
            if not (labels.min() >= 1 and labels.max() <= 1000):
                raise ValueError("labels are not 1 to 1000")
        except (OSError, KeyError, ValueError, EOFError) as error:
            raise InputError(f"{path} is not an array of downsampled ImageNet: {error}") from error
        yield pixels.reshape(-1, 3, 32, 32), labels - 1, []

"""Data sets that are folders of image files, packed once."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.cache import Part, fingerprint, open_cached
from datasets.decode import WHITE, DecodeOptions, DecodeStats, UnreadableError, decode, without_warnings
from datasets.find import Scan, find_images, scan_folder
from datasets.image_io import cores, read_images
from datasets.images import ImageDataset
from utils.archives import BROKEN, ArrayFile
from utils.checks import did_you_mean
from utils.errors import InputError, printable

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parent.parent
PIXELS = 2  # version of how files become pixels: packs of another are made anew
TO_TRAIN_ON = ("train", "training")  # what the folders of the splits may be called, in any case
HELD_OUT = ("valid", "val", "validation", "test", "testing")  # the first that is there
EVERY = 10  # without the latter every tenth image is held out
TRIED = 100  # images, in looking for one that can be read
CHANNELS = {1: "grey", 3: "RGB", 4: "RGB and alpha"}
DARK = 2**14  # 16-bit images that never reach a quarter of white hold fewer bits, and floats are of another range
LONGEST_NAMES = 2**17  # characters of all names of classes, which a configuration has to hold


@dataclass(frozen=True)
class Split:
    """Image files of one purpose.

    Attributes:
        base: folder that they lie below; with classes it holds a folder for each.
        files: sorted by their path.
    """

    base: Path
    files: list[Path]


@dataclass(frozen=True)
class Look:
    """What a folder was found to hold.

    Attributes:
        found: what lies below it.
        splits: images to train on, and those held out.
        names: of the classes, in the order of their labels.
        notes: what the user may not expect.
    """

    found: Scan
    splits: tuple[Split, Split]
    names: tuple[str, ...]
    notes: list[str]


_looks: ContextVar[dict[tuple[object, ...], Look] | None] = ContextVar("looks", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """Let what is loaded inside look into a folder once, so that its splits are of the same listing."""
    token = _looks.set({})
    try:
        yield
    finally:
        _looks.reset(token)


def folder(
    train: bool,
    root: str | None,
    image_size: int,
    num_channels: int,
    num_classes: int,
    classes: bool,
    dataroot: str,
    background: str = "white",
    white: float | None = None,
    class_names: Sequence[str] | None = None,
    plain_order: bool = False,
) -> ImageDataset:
    """Load the images in a folder and below, whatever their format and size.

    ``root``/train and ``root``/valid (or val, validation, test, testing; in any case) are the splits; otherwise every
    tenth image in the order of their paths, with ``classes`` of each class, is held out. With ``classes`` the folders
    in a split are the classes, in the order of their names, numbers in these counting as numbers.

    Args:
        train: the training split, or the held-out one.
        root: the folder.
        image_size, num_channels: what the images are made into.
        num_classes: how many folders there are.
        classes: whether they are classes.
        dataroot: where packs are kept.
        background: colour that transparent parts are laid on, unless there are 4 channels.
        white: value of 16-bit, 32-bit and floating-point images that is white; None: what their format says.
        class_names: names of the classes in the order of their labels, if that is fixed already.
        plain_order: the order of names in which numbers do not count as such, for runs that do not record it.

    Raises:
        InputError: naming the key or the file at fault.
    """
    if root is None:
        raise InputError("data.root is missing: say data.root=PATH, a folder of images")
    if num_channels not in CHANNELS:
        known = ", ".join(f"{number} ({what})" for number, what in CHANNELS.items())
        raise InputError(f"data.num_channels={num_channels}: the images of a folder can have {known}")
    top = Path(root)
    if not top.is_dir():
        raise InputError(f"data.root={root} is not a folder")
    options = DecodeOptions(image_size, num_channels, background, white)
    fixed = None if class_names is None else tuple(class_names)
    looks = _looks.get()
    asked = (top, options, num_classes, classes, dataroot, fixed, plain_order)
    look = looks.get(asked) if looks is not None else None
    if look is None:
        look = _look(*asked)
        if looks is not None:
            looks[asked] = look
    split = look.splits[0] if train else look.splits[1]
    if train:
        look.found.log(top)
        for line in look.notes:
            log.warning("%s", printable(line))
    names = look.names
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[_class_name(path, split.base)] if classes else 0 for path in split.files], np.int64)
    images = _pack(top, split.files, labels, train, options, num_classes if classes else 1, dataroot)
    if sum(map(len, names)) > LONGEST_NAMES:
        log.warning("the names of the classes are too long to be recorded: label=NUMBER names one")
        names = ()
    return replace(images, class_names=names)


def _look(
    top: Path,
    options: DecodeOptions,
    num_classes: int,
    classes: bool,
    dataroot: str,
    class_names: tuple[str, ...] | None,
    plain_order: bool,
) -> Look:
    """Return what the folder ``top`` holds; the arguments are those of ``folder``.

    Raises:
        InputError: naming the key or the file at fault.
    """
    made = [Path(dataroot) / name for name in ("packs", "ds_imagenet", "imagenet-64x64")]
    found = scan_folder(top, without_ours=True, ours=_strictly_below(top, [*made, PROJECT / "docs"]))
    notes: list[str] = []  # said when all is as it should be, so that a refusal is one line

    def note(text: str, *args: object) -> None:
        notes.append(text % args)

    splits = _find_splits(top, found, classes, options, note)
    names: tuple[str, ...] = ()
    if classes:
        names = _class_names(splits, num_classes, class_names, str if plain_order else natural_order, note)
    return Look(found, splits, names, notes)


def _strictly_below(top: Path, folders: Sequence[Path]) -> list[Path]:
    real = top.resolve()
    return [path for path in folders if real in path.resolve().parents]


def _find_splits(
    top: Path, found: Scan, classes: bool, options: DecodeOptions, note: Callable[..., None]
) -> tuple[Split, Split]:
    """Return the images to train on and those held out.

    Args:
        top: the folder.
        found: what lies below it.
        classes: whether the folders in a split are classes.
        options: how they are read.
        note: logs what the user may not expect.

    Raises:
        InputError: if there are no images, or a folder could be a split as well as a class.
    """
    if not found.files:
        left = sum(map(len, found.left_out.values()))
        instead = f"{left} left out, other kinds of files: {found.kinds() or 'none'}"
        raise InputError(f"data.root={top} has no images to train on (.png, .jpg, ...; {instead})")
    by_folder: dict[str, list[Path]] = {}
    for path in found.files:
        parts = path.parts[len(top.parts) :]
        by_folder.setdefault(parts[0] if len(parts) > 1 else "", []).append(path)
    to_train = [name for name in by_folder if _kind(name) in TO_TRAIN_ON]
    held_out = sorted((name for name in by_folder if _kind(name) in HELD_OUT), key=lambda n: HELD_OUT.index(_kind(n)))
    beside = sorted(by_folder.keys() - {*to_train, *held_out})
    if len(to_train) > 1:
        raise InputError(f"data.root={top} has {' and '.join(to_train)}: which is to be trained on? rename the others")
    if (to_train or held_out) and not (to_train and held_out):
        lone = (to_train or held_out)[0]
        others = [name for name in beside if name]
        if classes and (others or held_out):
            among = f"beside {', '.join(others[:3])}{', ...' * (len(others) > 3)}" if others else "and no train"
            raise InputError(
                f"data.root={top} has {lone} {among}: a class cannot be called like a split, rename it; if it is one, "
                f"say data.root={top / lone}"
            )
        if others or held_out:
            note("%s is a folder of images like any other: there is no other split beside it", top / lone)
            to_train, held_out = [], []
    if not to_train:
        _check_below(top, by_folder, note)
        return _hold_out(Split(top, found.files), classes, options, note)
    training = Split(top / to_train[0], by_folder[to_train[0]])
    unused = {name: len(by_folder[name]) for name in [*held_out[1:], *beside]}
    if unused:
        listed = ", ".join(f"{number} in {name or top}" for name, number in unused.items())
        note("images that are not used, beside %s: %s", " and ".join([*to_train, *held_out[:1]]), listed)
    if held_out:
        part = Split(top / held_out[0], by_folder[held_out[0]])
        if _first_readable(part.files, options):
            return training, part
        note("no image of %s can be read: a share of %s is held out instead", part.base, training.base)
    return _hold_out(training, classes, options, note)


def _check_below(top: Path, by_folder: dict[str, list[Path]], note: Callable[..., None]) -> None:
    """Say where splits lie below a folder in ``top`` and not in it, so that they are not taken as such.

    Raises:
        InputError: if all images lie in one such folder, which then was meant.
    """
    depth = len(top.parts) + 1
    for name, files in by_folder.items():
        kinds = {_kind(path.parts[depth]) for path in files if name and len(path.parts) > depth + 1}
        if kinds & set(TO_TRAIN_ON) and kinds & set(HELD_OUT):
            if len(by_folder) == 1:
                raise InputError(f"data.root={top} has its splits one folder below: say data.root={top / name}")
            note("the splits below %s are not taken as such: they are looked for in %s itself", top / name, top)


def _kind(name: str) -> str:
    """Return the name of a split as in ``TO_TRAIN_ON`` and ``HELD_OUT``: "Training_Set" is training."""
    return name.lower().removesuffix("set").rstrip("_- ")


def _hold_out(split: Split, classes: bool, options: DecodeOptions, note: Callable[..., None]) -> tuple[Split, Split]:
    """Hold out every tenth image: of each class, and of all those together that have fewer than ten.

    A class keeps an image to train on. Where that holds nothing out, or nothing that can be read, it is the last image
    that can be read of a class that has another; where none has, an image serves for both.
    """
    base, files = split.base, split.files
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(_class_name(path, base) if classes else "", []).append(path)
    chosen: set[Path] = set()
    count = 0  # of images in small classes
    for group in groups.values():
        if len(group) >= EVERY:
            chosen.update(group[EVERY - 1 :: EVERY])
        else:
            first = -(count + 1) % EVERY
            chosen.update(group[first::EVERY] if len(group) > 1 else ())
            count += len(group)
    alone = False  # an image held out is the only one of its class
    if _first_readable([path for path in files if path in chosen], options) is None:
        spare = [path for group in groups.values() if len(group) > 1 for path in group if path not in chosen]
        last = _first_readable(spare[::-1], options) or _first_readable(files[::-1], options) or files[-1]
        chosen = {last}
        alone = len(groups[_class_name(last, base) if classes else ""]) == 1
    kept = [path for path in files if path not in chosen]
    if alone or (_first_readable(kept, options) is None and _first_readable(files, options) is not None):
        kept = files
        note("%s has no image to spare: %s is trained on and held out", base, min(chosen).name)
    return Split(base, kept), Split(base, [path for path in files if path in chosen])


def _first_readable(files: Sequence[Path], options: DecodeOptions) -> Path | None:
    """Return the first of some files that can be read, if it is among the first ``TRIED``."""
    for path in files[:TRIED]:
        with suppress(UnreadableError), without_warnings():
            decode(path, options)
            return path
    return None


def _class_names(
    splits: tuple[Split, Split],
    num_classes: int,
    fixed: Sequence[str] | None,
    order: Callable[[str], Any],
    note: Callable[..., None],
) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels.

    Args:
        splits: the images to train on, and those held out.
        num_classes: how many there should be.
        fixed: the names, if their order was fixed before.
        order: key that they are sorted by, if not.
        note: logs what the user may not expect.

    Raises:
        InputError: if they are others, or not so many, or cannot be names.
    """
    training, held_out = splits
    base = training.base
    there = {_class_name(path, split.base): path for split in reversed(splits) for path in split.files[::-1]}
    if fixed is not None:
        names, given = list(fixed), set(fixed)
        for name, path in there.items():
            if name not in given:
                known = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
                raise InputError(
                    f"{path} is of class {name}, but data.class_names has {known}{did_you_mean(name, names)}; if "
                    "a class was renamed, give data.class_names anew, in the order of the labels, and to a run that "
                    "goes on training.allow_data_change=true"
                )
        absent = [name for name in names if name not in there]
        if absent:
            note("%s has no images of %s", base, ", ".join(absent))
    else:
        names = sorted({_class_name(path, base) for path in training.files}, key=order)
        if base == held_out.base:
            names = sorted(there, key=order)
        for name in sorted(there.keys() - set(names)):
            raise InputError(f"{there[name]} is of a class that {base} does not have")
    if len(names) != num_classes:
        told = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
        raise InputError(f"data.num_classes={num_classes}, but {base} has {len(names)} folders of images: {told}")
    for name in names:
        if "${" in name or name == "???" or any("\ud800" <= c <= "\udfff" for c in name):
            raise InputError(
                f"{there.get(name, base)}: its class cannot be called {printable(name)}, rename the folder"
            )
    return tuple(names)


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a key that sorts names as people do: numbers in them by their value."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def imagenet32(
    train: bool, image_size: int, num_channels: int, classes: bool, dataroot: str, **_: object
) -> ImageDataset:
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
        return open_cached(path, made_of, (3, 32, 32), 0, partial(read_arrays, arrays), 1000)
    if classes:
        raise InputError(f"data.classes=True, but the PNGs of {base} have no classes")
    return _pack(base, files, np.zeros(len(files), np.int64), train, DecodeOptions(32), 1, dataroot)


def imagenet64c(
    train: bool, image_size: int, num_channels: int, num_classes: int, dataroot: str, **_: object
) -> ImageDataset:
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
    return _pack(base, files, labels, train, DecodeOptions(image_size, num_channels), num_classes, dataroot)


def _pack(
    root: Path,
    files: Sequence[Path],
    labels: np.ndarray,
    train: bool,
    options: DecodeOptions,
    num_classes: int,
    dataroot: str,
) -> ImageDataset:
    """Return the pack of some files below ``root`` with their labels, (len(files),)."""
    size = options.size or 0

    def parts() -> Iterator[Part]:
        stats = DecodeStats()
        for pixels, good, bad, of_chunk in read_images(files, options, cores()):
            stats += of_chunk
            yield pixels, labels[good], [(str(path.relative_to(root)), reason) for path, reason in bad]
        if train:
            _report(root, stats, options)

    try:
        made_with = (PIXELS, size, options.num_channels, options.background, options.white)
        made_of = fingerprint(files, root, *made_with, hashlib.sha256(labels.tobytes()).hexdigest())
    except OSError as error:
        raise InputError(f"{error.filename} is not there") from error
    own = () if options == DecodeOptions(options.size, options.num_channels) else (options.background, options.white)
    path = _pack_path(root, train, dataroot, size, options.num_channels, num_classes, *own)
    return open_cached(path, made_of, (options.num_channels, size, size), len(files), parts, num_classes)


def _report(root: Path, stats: DecodeStats, options: DecodeOptions) -> None:
    """Log what was met in the images that were packed to train on.

    Raises:
        InputError: if all images of 16 bits, or all of floating point, would be nearly black.
    """
    if stats.transparent and options.num_channels != 4:
        log.info("%d images have transparent parts, laid on data.background=%s", stats.transparent, options.background)
    if stats.paged:
        log.info("%d files have more than one page or frame: the first is taken", stats.paged)
    if stats.deep and stats.peak < DARK and options.white is None:
        told = (
            f"the {stats.deep} images of 16 bits in {root} are nearly black: no value is above {stats.peak} of {WHITE}"
        )
        if stats.deep_colour:
            raise InputError(f"{told}; store them with 8 bits a channel, or say data.white={WHITE} if that is right")
        full = 2 ** max(8, stats.peak.bit_length()) - 1
        raise InputError(f"{told}; say which value is white, data.white={full}, or data.white={WHITE} if that is right")
    if stats.floating and stats.float_peak < DARK / 2**16 and options.white is None:
        largest = str(np.float32(stats.float_peak))  # the digits that make this value again
        which = f"say which value is white, such as data.white={largest}, or" if stats.float_peak else "say"
        raise InputError(
            f"the {stats.floating} images of floating point in {root} are nearly black: no value is above {largest} of "
            f"1; {which} data.white=1 if that is right"
        )


def _pack_path(root: Path, train: bool, dataroot: str, *options: object) -> Path:
    key = hashlib.sha256(repr((str(root.resolve()), options)).encode()).hexdigest()[:8]
    return Path(dataroot) / "packs" / f"{root.resolve().name}-{key}-{'train' if train else 'held_out'}.safetensors"


def _class_name(path: Path, base: Path) -> str:
    parts = path.parts[len(base.parts) :]
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

"""The data set ``folder``: the images, splits and classes of any folder of image files."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from datasets.cached_images import cache_images
from datasets.decode import DecodeOptions, UnreadableError, decode, without_warnings
from datasets.find import Scan, scan_folder
from datasets.images import ImageDataset
from utils.errors import InputError, printable
from utils.options import Name, PathName, Positive, did_you_mean

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parent.parent
TRAINING_NAMES = ("train", "training")  # names of the folder of the training split, case-insensitive
HELD_OUT_NAMES = ("valid", "val", "validation", "test", "testing")  # in order of precedence
EVERY = 10  # without a held-out folder every tenth image is held out
MAX_TRIED = 100  # most images that are tried in the search for one that can be read
CHANNELS = {1: "grey", 3: "RGB", 4: "RGB and alpha"}
LONGEST_NAMES = 2**17  # most characters of all names of classes, which are stored in a configuration


def _check_colour(value: str) -> str:
    from PIL import ImageColor

    if len(ImageColor.getrgb(value)) != 3:
        raise ValueError("not opaque")
    return value


def _check_different(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        raise ValueError("two names are the same")
    return names


Colour = Annotated[str, AfterValidator(_check_colour), Field(description="a colour such as white, grey or '#ff8000'")]
ClassNames = Annotated[
    Sequence[Name],
    AfterValidator(_check_different),
    Field(min_length=1, max_length=10**6, description="different names"),
]


@dataclass(frozen=True)
class Split:
    """The image files of one split.

    Attributes:
        base: folder that contains the files; with classes it has a folder for each class.
        files: paths of the files, sorted.
    """

    base: Path
    files: list[Path]


@dataclass(frozen=True)
class FolderContents:
    """The splits and classes found in a folder.

    Attributes:
        found: result of the search for image files.
        splits: training and held-out split.
        names: names of the classes, in the order of their labels.
        notes: warnings for the user.
    """

    found: Scan
    splits: tuple[Split, Split]
    names: tuple[str, ...]
    notes: list[str]


_scanned: ContextVar[dict[tuple[object, ...], FolderContents] | None] = ContextVar("scanned", default=None)


@contextmanager
def scan_once() -> Iterator[None]:
    """Search each folder only once inside the context, so that both splits come from the same listing."""
    token = _scanned.set({})
    try:
        yield
    finally:
        _scanned.reset(token)


def folder(
    train: bool,
    image_size: int,
    num_channels: int,
    num_classes: int,
    classes: bool,
    dataroot: str,
    root: PathName | None = None,
    background: Colour = "white",
    white: Positive | None = None,
    class_names: ClassNames | None = None,
    plain_order: bool = False,
    **_: object,
) -> ImageDataset:
    """Load the images in a folder and below, whatever their format and size.

    ``root``/train and ``root``/valid (or val, validation, test, testing; in any case) are the splits; otherwise every
    tenth image in the order of their paths, with ``classes`` of each class, is held out. With ``classes`` the folders
    in a split are the classes, in the order of their names, numbers in these counting as numbers.

    Args:
        train: whether to load the training split instead of the held-out one.
        image_size: height and width that the images are resized to.
        num_channels: number of channels, 1 (grey), 3 (RGB) or 4 (RGB and alpha).
        num_classes: number of class folders.
        classes: whether the folders in a split are classes.
        dataroot: folder of the cache.
        root: folder of the images.
        background: colour that transparent parts are composited on, unless there are 4 channels.
        white: value of white in 16-bit, 32-bit and floating-point images; None for that of their format.
        class_names: names of the classes in the order of their labels, if that order is fixed already.
        plain_order: whether names are sorted character by character, as in runs that do not record their order.

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
    scanned = _scanned.get()
    key = (top, options, num_classes, classes, dataroot, fixed, plain_order)
    contents = scanned.get(key) if scanned is not None else None
    if contents is None:
        contents = _scan(*key)
        if scanned is not None:
            scanned[key] = contents
    split = contents.splits[0] if train else contents.splits[1]
    if train:
        contents.found.log(top)
        for line in contents.notes:
            log.warning("%s", printable(line))
    names = contents.names
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[_class_name(path, split.base)] if classes else 0 for path in split.files], np.int64)
    images = cache_images(top, split.files, labels, train, options, num_classes if classes else 1, dataroot)
    if sum(map(len, names)) > LONGEST_NAMES:
        log.warning("the names of the classes are too long to be recorded: label=NUMBER names one")
        names = ()
    return replace(images, class_names=names)


def _scan(
    top: Path,
    options: DecodeOptions,
    num_classes: int,
    classes: bool,
    dataroot: str,
    class_names: tuple[str, ...] | None,
    plain_order: bool,
) -> FolderContents:
    """Find the splits and the classes of the folder ``top``; the arguments are those of ``folder``.

    Raises:
        InputError: naming the key or the file at fault.
    """
    made = [Path(dataroot) / name for name in ("cache", "ds_imagenet", "imagenet-64x64")]
    found = scan_folder(top, skip_outputs=True, outputs=_strictly_below(top, [*made, PROJECT / "docs"]))
    notes: list[str] = []  # logged only if there is no error, so that a refusal is one line

    def note(text: str, *args: object) -> None:
        notes.append(text % args)

    splits = _find_splits(top, found, classes, options, note)
    names: tuple[str, ...] = ()
    if classes:
        names = _class_names(splits, num_classes, class_names, str if plain_order else natural_order, note)
    return FolderContents(found, splits, names, notes)


def _strictly_below(top: Path, folders: Sequence[Path]) -> list[Path]:
    """Return the folders that are below ``top``, after links are resolved."""
    real = top.resolve()
    return [path for path in folders if real in path.resolve().parents]


def _find_splits(
    top: Path, found: Scan, classes: bool, options: DecodeOptions, note: Callable[..., None]
) -> tuple[Split, Split]:
    """Find the training and the held-out split in the folder ``top``.

    Args:
        top: folder of the images.
        found: image files below it.
        classes: whether the folders in a split are classes.
        options: options of decoding, to test whether an image can be read.
        note: function that records a warning, called as ``log.warning``.

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
    to_train = [name for name in by_folder if _kind(name) in TRAINING_NAMES]
    held_out = [name for name in by_folder if _kind(name) in HELD_OUT_NAMES]
    held_out.sort(key=lambda name: HELD_OUT_NAMES.index(_kind(name)))
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
        _check_nested_splits(top, by_folder, note)
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


def _check_nested_splits(top: Path, by_folder: dict[str, list[Path]], note: Callable[..., None]) -> None:
    """Warn of folders named like splits that are one level below ``top`` and therefore not used as splits.

    Raises:
        InputError: if all images lie in one such folder.
    """
    depth = len(top.parts) + 1
    for name, files in by_folder.items():
        kinds = {_kind(path.parts[depth]) for path in files if name and len(path.parts) > depth + 1}
        if kinds & set(TRAINING_NAMES) and kinds & set(HELD_OUT_NAMES):
            if len(by_folder) == 1:
                raise InputError(f"data.root={top} has its splits one folder below: say data.root={top / name}")
            note("the splits below %s are not taken as such: they are looked for in %s itself", top / name, top)


def _kind(name: str) -> str:
    """Normalize a folder's name for ``TRAINING_NAMES`` and ``HELD_OUT_NAMES``: "Training_Set" gives "training"."""
    return name.lower().removesuffix("set").rstrip("_- ")


def _hold_out(split: Split, classes: bool, options: DecodeOptions, note: Callable[..., None]) -> tuple[Split, Split]:
    """Divide a split: hold out every tenth image of each class, and of all classes with fewer than ten together.

    Each class keeps an image to train on. If none of the held-out images can be read, the last readable image of a
    class with more than one image is held out; if there is no such class, one image is in both splits.
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
    alone = False  # whether a held-out image is the only one of its class
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
    """Return the first file that can be read, if it is among the first ``MAX_TRIED``; else None."""
    for path in files[:MAX_TRIED]:
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
        splits: training and held-out split.
        num_classes: number of classes in the configuration.
        fixed: names in the order of their labels, if they are fixed already.
        order: key function that sorts the names otherwise.
        note: function that records a warning, called as ``log.warning``.

    Raises:
        InputError: if the classes or their number differ, or a name cannot be stored in a configuration.
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
                    "a class was renamed, give data.class_names anew, in the order of the labels, and "
                    "training.allow_data_change=true to a run that is resumed"
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
        listed = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
        raise InputError(f"data.num_classes={num_classes}, but {base} has {len(names)} folders of images: {listed}")
    for name in names:
        if "${" in name or name == "???" or any("\ud800" <= c <= "\udfff" for c in name):
            raise InputError(
                f"{there.get(name, base)}: its class cannot be called {printable(name)}, rename the folder"
            )
    return tuple(names)


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sorting key of a name, in which digits compare as numbers."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _class_name(path: Path, base: Path) -> str:
    """Return the name of the folder in ``base`` that contains ``path``.

    Raises:
        InputError: if ``path`` is in ``base`` itself.
    """
    parts = path.parts[len(base.parts) :]
    if len(parts) < 2:
        raise InputError(f"{path} is in no folder of a class below {base}: use data.classes=False, or move it")
    return parts[0]

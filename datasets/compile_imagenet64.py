"""Preparation of ImageNet at 64x64: python compile_imagenet64.py /path/to/imagenet [--out imagenet-64x64] [--workers N]

Makes OUT/train and OUT/valid: PNGs 00000/img00000000.png, ... (the square in the middle of each image, resized with
antialiasing, RGB) and dataset.json, {"labels": [["00000/img00000000.png", class], ...]}. A class is the position of its
WordNet id among the sorted ids of train. After an interruption, the same command resumes where it stopped.

/path/to/imagenet holds train/WNID/*.JPEG and val (or ILSVRC/Data/CLS-LOC/train and val). If val has no folder for each
class, it takes a file with the ground truth: LOC_val_solution.csv of Kaggle, lines "NAME WNID", or
ILSVRC2012_validation_ground_truth.txt of the development kit with its meta.mat beside it.
"""

import argparse
import hashlib
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # before this folder, which is the first when a script in it is run

from datasets.image_io import SUFFIXES, UnreadableError, cores, find_images, in_processes, read_image  # noqa: E402
from utils.errors import ArgumentParser, InputError, UserError, printable, writing  # noqa: E402
from utils.locks import exclusive  # noqa: E402

CLS_LOC = "ILSVRC/Data/CLS-LOC"
DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTHS = ("LOC_val_solution.csv", "val_labels.txt", "val_labels.csv", "ILSVRC2012_validation_ground_truth.txt")
IN_A_FOLDER = 1000


@dataclass(frozen=True)
class Split:
    """The source files of a split.

    Attributes:
        source: folder that contains the files.
        files: paths of the files, sorted.
        classes: class of each file.
    """

    source: Path
    files: list[Path]
    classes: list[int]

    def names(self) -> list[str]:
        """Return the paths of the files relative to the folder."""
        start = len(str(self.source)) + 1
        return [str(path)[start:] for path in self.files]


def find_splits(root: Path, truth: Path | None = None) -> dict[str, Split]:
    """Find the splits train and valid of the ImageNet in ``root``.

    Args:
        root: folder of ImageNet.
        truth: file with the classes of the validation images; None: found by its name.

    Raises:
        InputError: naming the file or folder that is missing or does not fit.
    """
    base = next((base for base in (root, root / CLS_LOC) if (base / "train").is_dir()), None)
    if base is None:
        raise InputError(f"{root} holds no folder train, nor {CLS_LOC}/train: name the folder of ImageNet")
    source = base / "train"
    ids = sorted(path.name for path in source.iterdir() if path.is_dir() and path.name[0] != ".")
    if not ids:
        raise InputError(f"{source} has no folder for each class, such as n01440764: unpack the archives there")
    numbers = {wnid: number for number, wnid in enumerate(ids)}
    files = _images(source)
    train = Split(source, files, _by_folder(source, files, numbers))

    held_out = next((base / name for name in ("val", "valid", "validation") if (base / name).is_dir()), None)
    if held_out is None:
        raise InputError(f"{base} holds no folder val (or valid, validation) with the validation images")
    source = held_out
    files = _images(source)
    if any(path.parent != source for path in files):
        if truth is not None:
            raise InputError(f"--val-labels {truth} is not needed, {source} has a folder for each class: leave it out")
        classes = _by_folder(source, files, numbers)
    else:
        truth = truth or _find_truth(root, source)
        classes = read_truth(truth, files, numbers)
        print(printable(f"classes of the validation images from {truth}"))
    return {"train": train, "valid": Split(source, files, classes)}


def read_truth(path: Path, files: Sequence[Path], numbers: dict[str, int]) -> list[int]:
    """Read the classes of validation images from a file with the ground truth, in any of its three formats.

    Args:
        path: path of the file.
        files: paths of the images, sorted.
        numbers: class of each WordNet id.

    Raises:
        InputError: if the file cannot be read or does not fit the images and ids.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    rows = [row for row in (line.replace(",", " ").replace('"', "").split() for line in text.splitlines()) if row]
    if all(len(row) == 1 and row[0].isdecimal() for row in rows):
        wnids = _by_number(path, [int(row[0]) for row in rows], files)
    else:
        wnids = _by_name(path, rows, files)
    for file, wnid in zip(files, wnids, strict=True):
        if wnid not in numbers:
            raise InputError(f"{path}: {file.name} is {wnid}, of which train has no folder")
    return [numbers[wnid] for wnid in wnids]


def compile_imagenet(root: Path, out: Path, size: int, workers: int, truth: Path | None = None) -> None:
    """Make ``out``/train and ``out``/valid from the ImageNet in ``root``, or complete what an earlier call began.

    Raises:
        InputError: if ``root`` is not ImageNet, or ``out`` has other contents or is in use.
        UserError: if a file cannot be written.
    """
    splits = find_splits(root, truth)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with exclusive(out, "another process compiles there"):
        for name, split in splits.items():
            compile_split(split, out / name, size, workers)


def compile_split(split: Split, folder: Path, size: int, workers: int) -> None:
    """Make the PNGs and dataset.json of a split in ``folder``, unless that is done."""
    _claim(folder, _fingerprint(split, size))
    if (folder / "dataset.json").exists():
        print(printable(f"{folder} is done already"))
        return
    missing, total = _missing(folder, len(split.files)), len(split.files)
    failed: dict[int, str] = {}
    jobs = [(number, split.files[number]) for number in missing]
    make = partial(make_pngs, folder, size)
    bar = tqdm(total=total, initial=total - len(jobs), desc=printable(folder.name), unit="image", disable=None)
    with bar, closing(in_processes(make, jobs, workers)) as parts:
        for chunk, bad in parts:
            failed |= bad
            bar.update(len(chunk))
    listing = folder / "unreadable.txt"
    listing.unlink(missing_ok=True)
    if failed:
        names = split.names()
        lines = [f"{printable(names[number])}\t{printable(reason)}\n" for number, reason in failed.items()]
        _write(listing, "".join(lines).encode())
        for number, reason in list(failed.items())[:10]:
            print(printable(f"{split.files[number]} cannot be read and is left out: {reason}"), file=sys.stderr)
        print(printable(f"{len(failed)} of {total} files left out, listed in {listing}"), file=sys.stderr)
    if len(failed) == total:
        raise InputError(f"none of the images in {split.source} can be read")
    labels = [[png_name(number), split.classes[number]] for number in range(total) if number not in failed]
    _write(folder / "dataset.json", json.dumps({"labels": labels}).encode())
    print(printable(f"{folder} is ready: {len(labels)} images, {total - len(jobs)} of them from before"))


def make_pngs(folder: Path, size: int, jobs: Sequence[tuple[int, Path]]) -> dict[int, str]:
    """Convert numbered source files to PNGs; return {number: reason} for those that cannot be read."""
    failed = {}
    for number, path in jobs:
        try:
            pixels = read_image(path, size)
        except UnreadableError as error:
            failed[number] = str(error)
            continue
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        _write(folder / png_name(number), png.getvalue())
    return failed


def png_name(number: int) -> str:
    """Return the path of an image below the folder of its split."""
    return f"{number // IN_A_FOLDER:05d}/img{number:08d}.png"


def _images(source: Path) -> list[Path]:
    files = find_images(source)
    if not files:
        raise InputError(f"{source} holds no images")
    return files


def _by_folder(source: Path, files: list[Path], numbers: dict[str, int]) -> list[int]:
    classes = [numbers.get(name.split(os.sep)[0], -1) for name in Split(source, files, []).names()]
    if -1 in classes:
        raise InputError(f"{files[classes.index(-1)]} is not in the folder of a class that train has")
    return classes


def _find_truth(root: Path, source: Path) -> Path:
    folders = [folder for folder in source.parents if folder == root or root in folder.parents]
    for folder in (*folders, root / DEVKIT):
        for name in TRUTHS:
            if (folder / name).is_file():
                return folder / name
    raise InputError(
        f"{source} has no folder for each class, and none of {', '.join(TRUTHS)} is in {root}: say --val-labels FILE"
    )


def _by_name(path: Path, rows: list[list[str]], files: Sequence[Path]) -> list[str]:
    """Return the WordNet ids of ``files`` by the lines "NAME WNID" of a file."""
    found: dict[str, str] = {}
    for row in rows:
        if len(row) < 2:
            raise InputError(f"{path}: need a line with a name and a WordNet id, not {row[0]}")
        if row[0] != "ImageId" and found.setdefault(_stem(row[0]), row[1]) != row[1]:
            raise InputError(f"{path} has more than one class for {row[0]}")
    missing = [file for file in files if _stem(file.name) not in found]
    if missing:
        raise InputError(f"{path} has no line for {missing[0]}, {len(missing)} of {len(files)} images are without")
    if len(found) > len(files):
        print(
            printable(f"{path} names {len(found)} images, {files[0].parent} has {len(files)} of them"), file=sys.stderr
        )
    return [found[_stem(file.name)] for file in files]


def _by_number(path: Path, order: list[int], files: Sequence[Path]) -> list[str]:
    """Return the WordNet ids of ``files`` by the numbers in the development kit's ground truth."""
    if len(order) != len(files):
        raise InputError(f"{path} has {len(order)} lines, {files[0].parent} {len(files)} images")
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise InputError(f"{path} numbers the classes in an order that only the kit's meta.mat tells: put {meta} there")
    from scipy.io import loadmat  # a slow import

    try:
        synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        wnids = {int(k): str(wnid) for k, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    except Exception as error:  # loadmat raises exceptions of many types on damaged files
        raise InputError(f"{meta} cannot be read as the meta.mat of the development kit: {error}") from error
    for number in order:
        if not 1 <= number <= 1000 or number not in wnids:
            raise InputError(f"{path}: {number} is not a class of {meta}, which are numbered from 1 to 1000")
    return [wnids[number] for number in order]


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(os.path.basename(name))
    return stem if suffix.lower() in SUFFIXES else stem + suffix


def _fingerprint(split: Split, size: int) -> str:
    """Return a digest of the names, sizes and classes of the source files of a split, and the size of the images."""
    digest = hashlib.sha256(f"{size}\n".encode())
    for name, path, number in zip(split.names(), split.files, split.classes, strict=True):
        try:
            length = os.stat(path).st_size
        except OSError:  # a broken link, which will be listed as unreadable
            length = -1
        digest.update(f"{name}\0{length}\0{number}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _claim(folder: Path, made_of: str) -> None:
    """Record the fingerprint ``made_of`` in ``folder``/.sources, or compare it with the one recorded there.

    Raises:
        InputError: if the two differ, or the folder has other contents.
    """
    sources = folder / ".sources"
    if sources.exists():
        if sources.read_text() != made_of:
            raise InputError(
                f"{folder} was begun with other images, labels or size: choose another --out, or remove it"
            )
    elif folder.exists() and any(path.name[0] != "." for path in folder.iterdir()):
        raise InputError(f"{folder} holds something else: choose another --out")
    else:
        _write(sources, made_of.encode())


def _missing(folder: Path, total: int) -> list[int]:
    """Return the numbers of the missing PNGs; remove the temporary files of a killed run."""
    missing: list[int] = []
    for part in (folder, *folder.glob("[0-9]" * 5)):
        for path in part.glob(".*.tmp"):
            path.unlink()
    for start in range(0, total, IN_A_FOLDER):
        part = folder / Path(png_name(start)).parent
        there = set(os.listdir(part)) if part.is_dir() else set()
        numbers = range(start, min(start + IN_A_FOLDER, total))
        missing += [number for number in numbers if os.path.basename(png_name(number)) not in there]
    return missing


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def main() -> None:
    """Parse the command line and compile ImageNet."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("imagenet", type=Path, help="folder of ImageNet")
    parser.add_argument("--out", type=Path, help="folder to make (default: imagenet-64x64 beside this script)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: %(default)s, the cores)")
    parser.add_argument("--val-labels", type=Path, metavar="FILE", help="ground truth of the validation images")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default: 64)")
    options = parser.parse_args()
    for name in ("workers", "size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: need at least 1")
    out = options.out or ROOT / f"datasets/imagenet-{options.size}x{options.size}"
    try:
        compile_imagenet(options.imagenet, out, options.size, options.workers, options.val_labels)
    except KeyboardInterrupt:
        print("interrupted: run it again to resume", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:  # an OSError names its file
        sys.exit(printable(str(error)))


if __name__ == "__main__":
    main()

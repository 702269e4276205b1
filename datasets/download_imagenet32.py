"""Preparation of ImageNet at 32x32, for data=imagenet32: download_imagenet32.sh [--to FOLDER] [--mirror URL] [PATH ...]

Fetches the PNGs of the published code to FOLDER/train_32x32 and FOLDER/valid_32x32, FOLDER being ds_imagenet beside
this script, or takes FOLDER/train_32x32.tar and valid_32x32.tar if you have put them there. Given PATHs, takes the
arrays of downsampled ImageNet that image-net.org gives out instead: Imagenet32_train.zip and Imagenet32_val.zip, their
npz files, or a folder of either.
"""

import argparse
import shutil
import sys
import zipfile
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # before this folder, which is the first when a script in it is run

from datasets.image_io import find_images  # noqa: E402
from datasets.imagenet import read_arrays  # noqa: E402
from utils.archives import BROKEN  # noqa: E402
from utils.downloads import DownloadError, fetch_folder, google_drive  # noqa: E402
from utils.errors import ArgumentParser, InputError, UserError, printable  # noqa: E402

IDS = {"train_32x32": "1-08kPTbCYHhFcwerMbZpiYFWCbbtWR17", "valid_32x32": "14CNPjwnkYAFXI77YYHSb0qa8HwIohxnh"}
COUNTS = {"train_32x32": 1_281_149, "valid_32x32": 49_999}  # PNGs
ARRAY_COUNTS = {"train_32x32": 1_281_167, "valid_32x32": 50_000}  # images in the arrays


def fetch_pngs(split: str, folder: Path, mirror: str | None) -> None:
    """Download the PNGs of a split to ``folder``/``split``, unless it is there.

    Raises:
        UserError: if the archive cannot be downloaded or is not what it should be.
    """
    target, archive = folder / split, folder / f"{split}.tar"
    if target.exists():
        print(printable(f"{target} is there"))
        return

    def find(unpacked: Path) -> Path:
        pngs = [path for path in find_images(unpacked) if path.suffix == ".png"]
        parents = {path.parent for path in pngs}
        if len(parents) != 1 or len(pngs) != COUNTS[split]:
            raise DownloadError(f"{archive} has {len(pngs)} PNGs in {len(parents)} folders, not {COUNTS[split]} in one")
        return parents.pop()

    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else google_drive(IDS[split])
    fetch_folder(url, archive, target, folder / "SHA256SUMS", find)
    print(printable(f"{target} is ready"))


def find_arrays(paths: list[Path]) -> dict[str, list[tuple[str, Path, str | None]]]:
    """Find the npz files in ``paths``, by split: (name, file, member of the file if that is a zip archive).

    Raises:
        InputError: for a path without such files.
    """
    files = []
    for path in paths:
        files += sorted(p for p in path.rglob("*") if p.suffix in (".npz", ".zip")) if path.is_dir() else [path]
    found: dict[str, list[tuple[str, Path, str | None]]] = {split: [] for split in IDS}
    for path in files:
        if not path.is_file():
            raise InputError(f"{path} is not there")
        arrays: list[tuple[str, Path, str | None]]
        if path.suffix == ".zip":
            try:
                with zipfile.ZipFile(path) as archive:
                    members = [name for name in archive.namelist() if name.endswith(".npz")]
            except BROKEN as error:
                raise InputError(f"{path} is not a whole zip archive: {error}") from error
            arrays = [(Path(member).name, path, member) for member in members]
        else:
            arrays = [(path.name, path, None)] if path.suffix == ".npz" else []
        if not arrays:
            raise InputError(f"{path} holds no npz: need Imagenet32_train.zip, Imagenet32_val.zip, or what is in them")
        for array in arrays:
            split = "valid_32x32" if array[0].startswith("val") else "train_32x32"
            if array[0] in [name for name, _, _ in found[split]]:
                raise InputError(f"{path} has {array[0]} a second time")
            found[split].append(array)
    return found


def take_arrays(split: str, arrays: list[tuple[str, Path, str | None]], folder: Path) -> None:
    """Copy npz files to ``folder``/``split``; each is checked before it is renamed from a temporary file.

    Raises:
        InputError: if one is not an array of downsampled ImageNet.
    """
    target = folder / split
    if target.is_dir() and find_images(target):
        raise InputError(f"{target} has PNGs: remove them first, the arrays are another version of the same images")
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, path, member in arrays:
        temporary = target / f".{name}.tmp"
        try:
            with ExitStack() as files:
                archive = files.enter_context(zipfile.ZipFile(path)) if member else None
                size = archive.getinfo(member).file_size if archive and member else path.stat().st_size
                if size > shutil.disk_usage(target).free:
                    raise InputError(
                        f"{path}: {name} has {size / 1e9:,.1f} GB, more than the disk of {target} has left"
                    )
                source = archive.open(member) if archive and member else path.open("rb")
                copy = files.enter_context(temporary.open("wb"))
                shutil.copyfileobj(files.enter_context(source), copy, 2**20)
            try:
                count += sum(len(labels) for _, labels, _ in read_arrays([temporary]))
            except InputError as error:
                raise InputError(
                    f"{path}: {name} is not an array of downsampled ImageNet ({error.__cause__})"
                ) from error
            temporary.rename(target / name)
        except InputError:
            raise
        except BROKEN as error:
            raise InputError(f"{path} cannot be copied to {target}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        print(printable(f"{target / name} is ready"))
    whole = "all" if count == ARRAY_COUNTS[split] else f"of {ARRAY_COUNTS[split]:,}: are some files missing?"
    print(printable(f"{count:,} images in {target}, {whole}"))


def main() -> None:
    """Parse the command line, and download the PNGs or copy the given arrays."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="zip or npz files, or folders of them")
    parser.add_argument("--to", type=Path, default=ROOT / "datasets/ds_imagenet", help="FOLDER")
    parser.add_argument("--mirror", help="address of a folder with the two tar archives")
    options = parser.parse_args()
    try:
        if options.paths:
            for split, arrays in find_arrays(options.paths).items():
                if arrays:
                    take_arrays(split, arrays, options.to)
        else:
            for split in IDS:
                fetch_pngs(split, options.to, options.mirror)
    except (UserError, OSError) as error:
        sys.exit(printable(str(error)))
    except KeyboardInterrupt:
        sys.exit("interrupted: run it again to resume")


if __name__ == "__main__":
    main()

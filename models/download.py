"""The published weights: python -m models.download [NAME ...] [--to weights] [--mirror URL]

Fetches cifar10, imagenet64 and denoiser (all, unless named) to weights/NAME, or takes weights/NAME.tar.gz if you have
put it there. The SHA-256 of each archive is recorded in weights/SHA256SUMS the first time and compared later.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from downloads import DownloadError, check_archive, check_recorded, fetch, unpack
from errors import CleanError

IDS = {
    "cifar10": "1AYPr0R8-3CssADBfYYSi1JuYaVrpLkTm",
    "denoiser": "1CL5tM-SO4vn6tyXzrFh7VBzQv3jXDI6X",
    "imagenet64": "1e177im3rwI1rsHcQ5wAsaCKBKcDYRllf",
}


def download(name: str, folder: Path, mirror: str | None = None) -> Path:
    """The model directory ``folder``/``name``, fetched if it is not there.

    Args:
        name: one of ``IDS``.
        folder: of all weights.
        mirror: address of a folder with NAME.tar.gz, instead of the published place.

    Raises:
        CleanError: if the archive cannot be had or is not what it should be; ``folder``/``name`` is not made then.
    """
    target, archive, sums = folder / name, folder / f"{name}.tar.gz", folder / "SHA256SUMS"
    if target.exists():
        print(f"{target} is there")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else f"https://drive.google.com/uc?id={IDS[name]}"
    placed = archive.exists()
    try:
        if not placed:
            fetch(url, archive)
        check_archive(archive)
    except DownloadError as error:
        if not placed:
            archive.unlink(missing_ok=True)
        raise DownloadError(f"{error}. Open {url} in a browser, save the file as {archive}, run this again") from error
    line = check_recorded(archive, sums)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as temporary:
        unpack(archive, Path(temporary))
        found = [path.parent.parent for path in Path(temporary).rglob(".hydra/config.yaml")]
        if len(found) != 1 or not list(found[0].glob("checkpoints/*.pth")):
            raise DownloadError(f"{archive} does not hold one model directory (.hydra/config.yaml, checkpoints/*.pth)")
        with sums.open("a") as file:  # before the directory appears: one that is there has its sum recorded
            file.write(line)
        found[0].rename(target)
    if not placed:
        archive.unlink()
    print(f"{target} is ready")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(IDS))
    parser.add_argument("--to", type=Path, default=Path("weights"), help="folder of all weights")
    parser.add_argument("--mirror", help="address of a folder with the three archives")
    options = parser.parse_args()
    for name in options.names:
        if name not in IDS:
            parser.error(f"{name}: known are {', '.join(IDS)}")
    failures = []
    for name in options.names or IDS:
        try:
            download(name, options.to, options.mirror)
        except (CleanError, OSError) as error:
            failures.append(f"{name}: {error}")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()

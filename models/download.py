"""Download the published weights: python -m models.download [NAME ...] [--to weights] [--mirror URL]

Fetches cifar10, imagenet64 and denoiser (all, unless named) to weights/NAME, or unpacks weights/NAME.tar.gz if you have
put it there. The SHA-256 of each archive is recorded in weights/SHA256SUMS the first time and compared later.
"""

import argparse
import sys
from pathlib import Path

from utils.downloads import DownloadError, fetch_folder, google_drive
from utils.errors import ArgumentParser, UserError, printable

IDS = {
    "cifar10": "1AYPr0R8-3CssADBfYYSi1JuYaVrpLkTm",
    "denoiser": "1CL5tM-SO4vn6tyXzrFh7VBzQv3jXDI6X",
    "imagenet64": "1e177im3rwI1rsHcQ5wAsaCKBKcDYRllf",
}


def download(name: str, folder: Path, mirror: str | None = None) -> Path:
    """Download a published model to ``folder``/``name``, unless that exists, and return its path.

    Args:
        name: key of ``IDS``.
        folder: directory of all weights.
        mirror: URL of a folder with NAME.tar.gz; None for the published place.

    Raises:
        UserError: if the archive cannot be downloaded or is not a model; ``folder``/``name`` is not created then.
    """
    target = folder / name
    if target.exists():
        print(printable(f"{target} is there"))
        return target
    archive = folder / f"{name}.tar.gz"
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else google_drive(IDS[name])

    def find(unpacked: Path) -> Path:
        found = [path.parent.parent for path in unpacked.rglob(".hydra/config.yaml")]
        if len(found) != 1 or not list(found[0].glob("checkpoints/*.pth")):
            raise DownloadError(f"{archive} does not hold one model directory (.hydra/config.yaml, checkpoints/*.pth)")
        return found[0]

    fetch_folder(url, archive, target, folder / "SHA256SUMS", find)
    print(printable(f"{target} is ready"))
    return target


def main() -> None:
    """Parse the command line and download the models."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        except (UserError, OSError) as error:
            failures.append(f"{name}: {error}")
    if failures:
        sys.exit("\n".join(map(printable, failures)))


if __name__ == "__main__":
    main()

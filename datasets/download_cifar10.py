"""Download of CIFAR-10 ahead of its first use: python download_cifar10.py [--to DATAROOT], by default this folder."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # before this folder, which is the first when a script in it is run

from datasets.images import cifar10  # noqa: E402
from utils.errors import ArgumentParser, UserError, printable  # noqa: E402


def main() -> None:
    """Download CIFAR-10 and print the number of images."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "datasets", help="what dataroot is for run_train.py")
    folder = parser.parse_args().to
    try:
        counts = [len(cifar10(train, str(folder))) for train in (True, False)]
    except (UserError, OSError) as error:
        sys.exit(printable(str(error)))
    print(printable(f"CIFAR-10 is in {folder}: {counts[0]} images to train on, {counts[1]} held out"))


if __name__ == "__main__":
    main()

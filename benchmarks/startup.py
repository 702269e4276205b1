"""How long does a command take to start? python -m benchmarks.startup

Measures --help, an invalid option, and a run of one step, each in a new process.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cli.entry_point import ROOT

REPEATS = 3
FIRST_STEP = ["experiment=digits", "training.n_iters=1", "training.snapshot_sampling=false", "device=cpu"]


def seconds(arguments: Sequence[str], folder: Path) -> float:
    """Measure one call of run_train.py, in seconds, whatever its exit status."""
    command = [sys.executable, str(ROOT / "run_train.py"), *arguments]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the time of each call."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    calls = {"--help": ["--help"], "an invalid option": ["optim.lr=fast"], "a run of one step": FIRST_STEP}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in calls.items():
            seen = [seconds(arguments, Path(folder)) for _ in range(REPEATS)]
            print(f"  {name:18} {statistics.median(seen):5.2f} s ({min(seen):.2f} to {max(seen):.2f})")


if __name__ == "__main__":
    main()

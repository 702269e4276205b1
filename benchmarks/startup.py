"""How long does a command take to start? python -m benchmarks.startup

Measures the import of torch and of the packages for sampling, and of the scripts --help, an invalid option, a run of
one step, and drawing one image by one evaluation: each in a new process.
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
ONE_STEP = ("experiment=digits", "training.n_iters=1", "training.snapshot_sampling=false", "device=cpu")
ONE_IMAGE = ("label=0", "eval.batch_size=1", "sampling.method=multistep", "sampling.steps=1", "device=cpu")


def seconds(arguments: Sequence[str], folder: Path) -> float:
    """Measure one call of Python in ``folder``, in seconds, whatever its exit status."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the time of each call."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    train, vis = (str(ROOT / f"run_{name}.py") for name in ("train", "vis"))
    packages = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import models, sampling, sde"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run([sys.executable, train, *ONE_STEP, f"hydra.run.dir={run}"], capture_output=True, check=True)
        calls = {
            "import torch": ["-c", "import torch"],
            "import models, sampling, sde": ["-c", packages],
            "run_train.py --help": [train, "--help"],
            "an invalid option": [train, "optim.lr=fast"],
            "a run of one step": [train, *ONE_STEP],
            "run_vis.py, one image": [vis, f"load_dir={run}", *ONE_IMAGE],
        }
        for name, arguments in calls.items():
            seen = [seconds(arguments, Path(folder)) for _ in range(REPEATS)]
            print(f"  {name:28} {statistics.median(seen):5.2f} s ({min(seen):.2f} to {max(seen):.2f})")


if __name__ == "__main__":
    main()

"""How does the cost of a training step scale? python -m benchmarks.scaling

Measures a training step of a small DDPM++ by batch size, image size and number of processes, and the cost per image or
pixel relative to the smallest case.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.networks import NARROW
from benchmarks.step import our_step
from benchmarks.timing import device_name, interleaved
from cli.entry_point import ROOT

REPEATS, STEPS = 3, 24
BATCHES, SIZES, PROCESSES = (4, 8, 16, 32), (16, 32, 64), (1, 2)


def growth(ways: Mapping[int, float], seconds: Mapping[str, list[float]], unit: str) -> None:
    """Print the time of each case, and its time per unit of work relative to the first case.

    Args:
        ways: amount of work by size.
        seconds: measured times by size.
        unit: name of a unit of work.
    """
    first, work = next(iter(ways.items()))
    for size, amount in ways.items():
        each = [s / amount for s in seconds[str(size)]]
        ratio = statistics.median(e / (f / work) for e, f in zip(each, seconds[str(first)], strict=True))
        print(f"  {size:4}  {statistics.median(seconds[str(size)]) * 1e3:8.1f} ms  {ratio:.2f} of the first per {unit}")


def images_per_second(processes: int, folder: Path) -> float:
    """Measure the speed of run_train.py with a number of processes, from the second half of its steps."""
    narrow = [] if torch.cuda.is_available() else NARROW["ddpmpp"]
    run = folder / str(processes)
    options = [
        f"ngpus={processes}",
        f"hydra.run.dir={run}",
        f"training.n_iters={STEPS}",
        f"training.log_freq={STEPS // 2}",
    ]
    options += [
        "data=fake",
        *narrow,
        "training.batch_size=32",
        "training.snapshot_sampling=false",
        "training.eval_freq=1000",
    ]
    subprocess.run([sys.executable, str(ROOT / "run_train.py"), *options], capture_output=True, check=True)
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["images_per_sec"]


def main() -> None:
    """Print the cost by batch size, image size and number of processes."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{device_name()}; DDPM++, by batch size")
    growth(
        {batch: batch for batch in BATCHES},
        interleaved({str(batch): our_step("ddpmpp", batch) for batch in BATCHES}, REPEATS),
        "image",
    )
    print("by height and width, batches of 8 images")
    growth(
        {size: size**2 for size in SIZES},
        interleaved({str(size): our_step("ddpmpp", 8, f"data.image_size={size}") for size in SIZES}, REPEATS),
        "pixel",
    )
    print("by processes, on the same cores" if not torch.cuda.is_available() else "by processes, one GPU each")
    with tempfile.TemporaryDirectory() as folder:
        rates = {n: images_per_second(n, Path(folder)) for n in PROCESSES if n <= max(2, torch.cuda.device_count())}
    for n, rate in rates.items():
        print(f"  {n:4}  {rate:8.1f} images/s  {rate / rates[1]:.2f} of one process")


if __name__ == "__main__":
    main()

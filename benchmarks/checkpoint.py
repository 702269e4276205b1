"""How long does a checkpoint pause training? python -m benchmarks.checkpoint [overrides of train.yaml]

Compares saving the state of a run, by default of the CIFAR-10 DDPM++, with writing as many bytes to the same disk.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.networks import composed
from training.checkpoint import Checkpoints
from training.loop import create_state

REPEATS = 5


def seconds(act: Callable[[], object]) -> float:
    """Measure the duration of a call, in seconds."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def write_plainly(contents: bytes, path: Path) -> None:
    """Write a file in one piece and flush it to the disk."""
    with open(path, "wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Print the times of saving, plain writing and resuming."""
    cfg = composed(*sys.argv[1:])
    state = create_state(cfg, torch.device("cpu"))
    for p in state.trainable:  # one update, to create the moments of the optimizer
        p.grad = torch.zeros_like(p)
    state.optimizer.step()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        checkpoints = Checkpoints(Path(folder))
        checkpoints.save_for_resume(state)
        contents = checkpoints.resume_path.read_bytes()
        saving, plain = [], []
        for _ in range(REPEATS):
            saving.append(seconds(lambda: checkpoints.save_for_resume(state)))
            plain.append(seconds(lambda: write_plainly(contents, Path(folder) / "plain")))
        resumed = seconds(lambda: checkpoints.restore(state, checkpoints.find() or checkpoints.resume_path))
    print(f"{sum(p.numel() for p in state.trainable):,} trained parameters, {len(contents) / 1e9:.2f} GB, on the CPU")
    print(f"saving {statistics.median(saving):.2f} s ({min(saving):.2f} to {max(saving):.2f}), median of {REPEATS}")
    print(f"writing as many bytes {statistics.median(plain):.2f} s ({min(plain):.2f} to {max(plain):.2f})")
    print(f"ratio {statistics.median(s / p for s, p in zip(saving, plain, strict=True)):.2f}")
    print(f"checking and resuming {resumed:.2f} s")


if __name__ == "__main__":
    main()

"""Is reading images a bottleneck of training? python -m benchmarks.data [--images N] [--large N] [--no-step]

Builds the cache of colour PNG files of 32x32, then reads batches of 128 from it, in memory and from disk, and compares
the rate with a DataLoader with 2 workers that decodes the files (torchvision's ImageFolder and ToTensor). Also measures
the memory of the process during an epoch over a large cache on disk, and one training step of the CIFAR-10 DDPM++.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from benchmarks.networks import composed
from datasets import Loader, load_images
from datasets.cache import Part, open_cached
from sde import create_process
from training.loop import Loss, create_state, train_step
from utils.distributed import Distributed

BATCH, REPEATS = 128, 5


def rate(next_batch: Callable[[int], object], batches: int) -> float:
    """Measure how many images a second ``next_batch(k)`` returns over a number of batches."""
    start = time.perf_counter()
    for k in range(batches):
        next_batch(k)
    return batches * BATCH / (time.perf_counter() - start)


def resident() -> float:
    """Return the resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def reading(folder: Path, count: int) -> float:
    """Print the time to build the cache and the rate of batches; return the seconds per batch from disk."""
    rng = np.random.default_rng(0)
    images_dir = folder / "images_dir"
    (images_dir / "all").mkdir(parents=True)
    for i in range(count):  # smooth shapes and grain give files of 2.3 kB, as CIFAR-10 images do
        small = Image.fromarray(rng.integers(256, size=(6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = rng.normal(0.0, 5.0, size=(32, 32, 3)).astype(np.float32)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(images_dir / "all" / f"{i:06}.png")
    size = sum(path.stat().st_size for path in (images_dir / "all").iterdir()) / count
    start = time.perf_counter()
    options: dict[str, Any] = {"image_size": 32, "num_channels": 3, "num_classes": 1, "classes": False}
    images = load_images("folder", True, **options, dataroot=str(folder), root=str(images_dir))
    load_images("folder", False, **options, dataroot=str(folder), root=str(images_dir))
    print(f"building the cache of {count:,} PNGs of {size:,.0f} bytes: {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    load_images("folder", True, **options, dataroot=str(folder), root=str(images_dir))
    print(f"checking that the cache is up to date: {time.perf_counter() - start:.2f} s")

    memory, disk = (Loader(images, BATCH, 0, "cpu", in_memory=limit) for limit in (2**40, 0))
    loader = DataLoader(
        ImageFolder(str(images_dir), ToTensor()), BATCH, shuffle=True, num_workers=2, persistent_workers=True
    )
    endless = (batch for _ in range(10**6) for batch in loader)
    ways: dict[str, tuple[Callable[[int], object], int]] = {
        "memory": (memory, 300),
        "disk": (disk, 300),
        "DataLoader": (lambda _: next(endless), 40),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for way, batches in ways.values():
        rate(way, batches)  # warm
    for _ in range(REPEATS):
        for name, (way, batches) in ways.items():
            rates[name].append(rate(way, batches))
    for name, seen in rates.items():
        ratio = statistics.median(a / b for a, b in zip(seen, rates["DataLoader"], strict=True))
        limits = f"{min(seen):,.0f} to {max(seen):,.0f}"
        print(
            f"batches of {BATCH}, {name}: {statistics.median(seen):,.0f} images/s ({limits}), {ratio:.1f} x DataLoader"
        )
    return BATCH / statistics.median(rates["disk"])


def memory_over_an_epoch(folder: Path, count: int) -> None:
    """Print how the memory of this process grows while it reads a large cache."""

    def parts() -> Iterator[Part]:
        rng = np.random.default_rng(0)
        for start in range(0, count, 10_000):
            n = min(10_000, count - start)
            yield rng.integers(256, size=(n, 3, 32, 32), dtype=np.uint8), np.zeros(n, np.int64), []

    images = open_cached(folder / "large.json", "random", (3, 32, 32), count, parts, 1)
    batches = Loader(images, BATCH, 0, "cpu", in_memory=0)
    batches(0)
    before, seen, start = resident(), [], time.perf_counter()
    for k in range(count // BATCH):
        batches(k)
        seen.append(resident())
    seconds = time.perf_counter() - start
    print(
        f"an epoch of {count:,} images ({images.data.nbytes / 1e9:.1f} GB): {count / seconds:,.0f} images/s, memory "
        f"{before:.0f} MB before, {max(seen) - before:+.0f} MB at most, {seen[-1] - before:+.0f} MB at the end"
    )


def step_of_training(seconds_of_a_batch: float) -> None:
    """Print the time to read a batch as a fraction of a training step of the CIFAR-10 model."""
    cfg = composed("data=fake", "training.grad_accum_steps=16", f"training.batch_size={BATCH}")
    state, distributed = create_state(cfg, torch.device("cpu")), Distributed(torch.device("cpu"))
    loss_fn = Loss(cfg, create_process(cfg.sde))
    images = load_images("fake", True, image_size=32, num_channels=3, num_classes=10)
    batches = Loader(images, BATCH, 0, "cpu")
    start = time.perf_counter()
    train_step(loss_fn, state.model, state, loss_fn.sample_batch(batches, 0), distributed, cfg.optim.lr, -1.0)
    seconds = time.perf_counter() - start
    print(f"a training step of the CIFAR-10 model, {BATCH} images: {seconds:.0f} s; reading is", end=" ")
    print(f"{100 * seconds_of_a_batch / seconds:.4f} % of it")


def main() -> None:
    """Print the rates of reading, the growth of memory, and the time of a training step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="number of PNG files")
    parser.add_argument("--large", type=int, default=1_300_000, help="images in the large cache")
    parser.add_argument("--no-step", action="store_true", help="omit the training step, which takes minutes on a CPU")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        seconds = reading(Path(folder), options.images)
        memory_over_an_epoch(Path(folder), options.large)
        if not options.no_step:
            step_of_training(seconds)


if __name__ == "__main__":
    main()

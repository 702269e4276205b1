"""How good are samples of few evaluations? python -m benchmarks.few_steps RUN [--nfe 4 5 6 8 10 20 50] [options]

Draws samples of a run by each sampler with each number of evaluations, and prints their energy distance to the training
and to the held-out data: a row a sampler, a column a number of evaluations. Standard errors are due to the number of
samples and to that of the data. The noise of sample i is the same for all. ``auto`` is what sampling.method=auto takes,
as tuned by ``python -m sampling.tune RUN`` where that was run.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from datasets import ImageDataset, load_configured
from models import load_pretrained
from models.score_model import ScoreModel
from sampling import create_sampler
from sampling.auto import read_tuned, resolve_auto
from sampling.draw import draw_samples
from sde import Process, create_process
from utils.energy_distance import distances_within, mean_distances

BATCH = 250
MOST = 10_000  # real samples of a split that are compared with
# Options of the section sampling for a number of evaluations; None where there is no such sampler.
SAMPLERS: dict[str, Callable[[int], dict[str, Any] | None]] = {
    "heun": lambda n: None if n % 2 else {"method": "heun", "steps": n // 2},
    "ancestral": lambda n: {"method": "pc", "predictor": "ancestral", "steps": n},
    "multistep": lambda n: {"method": "multistep", "steps": n},
    "multistep, eta 0.5": lambda n: {"method": "multistep", "steps": n, "eta": 0.5},
    "multistep, eta 1": lambda n: {"method": "multistep", "steps": n, "eta": 1.0},
    "unipc": lambda n: {"method": "unipc", "steps": n},
    "auto": lambda n: {"method": "auto", "nfe": n},
    "pc": lambda n: {"method": "pc", "steps": n},
    "ode": lambda _: {"method": "ode"},
}


def draw(
    net: ScoreModel, process: Process, images: ImageDataset, options: dict[str, Any], number: int, seed: int
) -> tuple[torch.Tensor, int]:
    """Draw samples with the classes or conditions of the held-out data in turn; (number, D), and the evaluations."""
    sampler = create_sampler(options, process, parametrization=net.parametrization)
    drawn, nfe = [], 0
    for start in range(0, number, BATCH):
        numbers = range(start, min(start + BATCH, number))
        labels = images.labels[[i % len(images) for i in numbers]] if net.takes_labels else None
        out = draw_samples(net, process, sampler, net.data_shape, numbers, seed, labels)
        drawn.append(out.samples.flatten(1))
        nfe = max(nfe, out.nfe)
    samples = torch.cat(drawn)
    if images.levels is not None:  # as in the files of images
        samples = (samples * 255).round() / 255
    return samples, nfe


def distance(samples: torch.Tensor, real: torch.Tensor) -> str:
    """Format the energy distance of samples (N, D) to data (M, D), float64, with its standard error."""
    across, within = mean_distances(samples, real), distances_within(samples, samples)
    among = distances_within(real, real)
    value = 2 * across.mean() - within.mean() - among.mean()
    of_samples = 2 * (across - within).std() / len(samples) ** 0.5
    of_data = 2 * (mean_distances(real, samples) - among).std() / len(real) ** 0.5
    return f"{value:.4f} +- {torch.hypot(of_samples, of_data):.4f}"


def main() -> None:
    """Print a row for each sampler as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 5, 6, 8, 10, 20, 50])
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=[name for name in SAMPLERS if name != "pc"])
    parser.add_argument("--number", type=int, default=1000, help="samples of each")
    parser.add_argument("--seed", type=int, default=1, help="seed of their noise")
    parser.add_argument("--dataroot", default="datasets")
    arguments = parser.parse_args()
    net, cfg = load_pretrained(arguments.run)
    process = create_process(cfg.sde)
    data = {split: load_configured(cfg.data, split == "train", arguments.dataroot, None) for split in ("train", "test")}
    real = {split: images.normalize(images.data[:MOST]).flatten(1).double() for split, images in data.items()}
    tuned = read_tuned(arguments.run, process)
    print(f"| {arguments.run}, {arguments.number} samples | data | " + " | ".join(map(str, arguments.nfe)) + " |")
    for name in arguments.samplers:
        cells: dict[str, list[str]] = {split: [] for split in real}
        for n in arguments.nfe[:1] if name == "ode" else arguments.nfe:
            if (options := SAMPLERS[name](n)) is not None:
                options = resolve_auto(options, tuned)
                samples, nfe = draw(net, process, data["test"], options, arguments.number, arguments.seed)
            for split in real:
                cell = "" if options is None else distance(samples.double(), real[split])
                cells[split].append(cell + f" ({nfe} evaluations)" * (bool(cell) and nfe != n))
        for split, row in cells.items():
            print(f"| {name} | {split} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()

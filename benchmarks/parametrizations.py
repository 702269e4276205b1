"""What does a parametrization cost in a training step? python -m benchmarks.parametrizations [RECIPE ...]

Measures steps of recipes with a small network, where it costs most, with each parametrization in turn.
"""

import argparse
import statistics
from collections.abc import Callable

import torch

from benchmarks.networks import composed
from benchmarks.timing import device_name, interleaved
from datasets import Loader, load_configured
from sde import create_process
from training.loop import Loss, create_state, train_step
from utils.distributed import Distributed

NAMES = ("output", "kernel", "kernel_width")
REPEATS = 30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def step_of(recipe: str, parametrization: str) -> Callable[[], None]:
    """Make a function that performs a training step of a recipe with a parametrization."""
    cfg = composed(f"experiment={recipe}", f"model.parametrization={parametrization}")
    state, distributed, loss_fn = create_state(cfg, DEVICE), Distributed(DEVICE), Loss(cfg, create_process(cfg.sde))
    batches = Loader(load_configured(cfg.data, True, cfg.dataroot, None), cfg.training.batch_size, cfg.seed, DEVICE)

    def step() -> None:
        batch = loss_fn.sample_batch(batches, state.step)
        train_step(loss_fn, state.model, state, batch, distributed, 1e-4, 1.0)

    return step


def main() -> None:
    """Print the time of a step of each recipe with each parametrization."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["digits", "patches"])
    print(f"{device_name()}, {torch.get_num_threads()} threads")
    for recipe in parser.parse_args().recipes:
        seconds = interleaved({name: step_of(recipe, name) for name in NAMES}, REPEATS, warm=2)
        for name, seen in seconds.items():
            ratio = statistics.median(s / b for s, b in zip(seen, seconds["output"], strict=True))
            print(f"{recipe}: {name:12} {statistics.median(seen) * 1e3:6.1f} ms, {ratio:.3f} of the published one")


if __name__ == "__main__":
    main()

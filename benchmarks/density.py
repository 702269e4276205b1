"""Does the density of a trained network integrate to one? python -m benchmarks.density [SEEDS], 15 minutes on two cores

Trains a small network in the square, with each parametrization of the reflected process, on points without and with
mass on the faces. Prints the loss on held-out points, the integral of the density of the flow over a grid, and the
evaluations that its points took: the mean over the seeds and its standard error.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from evaluation import log_likelihood
from losses import score_matching_loss
from models import Network, ScoreModel
from models.parametrization import PARAMETRIZATIONS
from sde import ReflectedVE, cube

NAMES = ("output", "kernel", "kernel_width")
PROCESS = ReflectedVE(0.02, 5.0)
STEPS, BATCH, LEARNING_RATE, HELD_OUT = 1500, 512, 2e-3, 50_000
GRID = 100  # points along a side: the density is smooth at the scale sigma_min, which is two of their distances
TOLERANCE = 1e-4


class Perceptron(Network):
    """A perceptron of three layers that is given the point itself and log sigma."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__((2,))
        self.layers = nn.Sequential(
            nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2 * num_outputs)
        )

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the raw output; see ``Network``."""
        return self.layers(torch.cat([x, sigma.log()[:, None]], 1))


def ring(n: int) -> Tensor:
    """Draw ``n`` points around a circle that meets the faces, (n, 2), not restricted to the square."""
    angle = 2 * torch.pi * torch.rand(n)
    return 0.5 + 0.45 * torch.stack([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(n, 2)


DATA = {
    "no mass on the faces": lambda n: cube.reflect(ring(n)),
    "mass on the faces": lambda n: ring(n).clamp(0.0, 1.0),
}


def measure(parametrization: str, data: str, seed: int) -> list[float]:
    """Train a network, and return held-out loss, integral of the density, mean and largest number of evaluations."""
    torch.manual_seed(seed)
    kind = PARAMETRIZATIONS[parametrization]
    net = ScoreModel(Perceptron(kind.num_outputs), kind())
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        score_matching_loss(net, PROCESS, DATA[data](BATCH)).mean().backward()
        optimizer.step()
        schedule.step()

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    with torch.no_grad():
        loss = score_matching_loss(net, PROCESS, DATA[data](HELD_OUT), generator=generator).mean()
    middles = (torch.arange(GRID) + 0.5) / GRID
    out = log_likelihood(net, PROCESS, torch.cartesian_prod(middles, middles), "exact", rtol=TOLERANCE, atol=TOLERANCE)
    return [loss.item(), out.log_prob.exp().mean().item(), out.evaluations.double().mean().item(), out.nfe]


def main() -> None:
    """Print a line for each data set and parametrization."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=5, help="number of networks of each kind")
    seeds = parser.parse_args().seeds
    print(
        "| data | parametrization | held-out loss | integral | evaluations, mean | largest |\n|---|---|---|---|---|---|"
    )
    for data in DATA:
        for name in NAMES:
            rows = np.array([measure(name, data, seed) for seed in range(seeds)])
            errors = rows.std(0, ddof=1) / seeds**0.5 if seeds > 1 else np.full(4, np.nan)
            texts = [f"{m:.4f} +- {e:.4f}" for m, e in zip(rows.mean(0)[:2], errors[:2], strict=True)]
            texts += [f"{rows[:, 2].mean():.0f}", f"{rows[:, 3].max():.0f}"]
            print(f"| {data} | {name} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()

"""How near are samples of bounded data to held-out ones? python -m benchmarks.bounded [--data ...] [--seeds N]

Compares ``bounded.BoundedDiffusion`` with the same network and steps as a plain VE diffusion, of which the samples are
clipped; with plain VE of the logits of the data, moved off the bounds; with scikit-learn's kernel density, clipped; with
stick breaking in place of sorting for compositions; and with independent beta or a Dirichlet distribution. Prints a
table for each data set, mean and standard error over the seeds. Two jobs run at a time, on one thread each.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

from benchmarks.bounded_data import DATA, BoundedData
from bounded import BoundedDiffusion
from bounded.training import train_run
from datasets.units import Interval, create_units
from evaluation.energy_distance import energy_distance
from evaluation.likelihood import log_likelihood
from models import load_pretrained
from sampling import create_sampler
from sampling.draw import draw_samples
from sde import create_process

DRAWN = 2000
CLAMP = 1e-3  # distance from the bounds to which the logit needs the data moved, in units of their range
MOST_DENSITY = 500  # held-out rows of which the density is computed
STEPS = {"n_iter": 2000}


@dataclass
class Outcome:
    """What a method returns.

    Attributes:
        samples: rows in the cube, or compositions, within the bounds.
        outside: share of the values that were out of bounds before clipping.
        log_density: mean log density of the held-out rows in the units of the data; NaN for none.
    """

    samples: np.ndarray
    outside: float = 0.0
    log_density: float = np.nan


class Cube:
    """Data in the coordinates in which they are compared: columns in [0, 1], or the parts of compositions.

    Args:
        data: rows and bounds.
    """

    def __init__(self, data: BoundedData) -> None:
        self.data = data
        self.units: Interval | None = None
        if not data.simplex:
            columns = data.train.shape[1]
            low, high = (list(end) if isinstance(end, list) else [end] * columns for end in (data.low, data.high))
            scale = [float(column[column > 0].mean()) for column in data.train.T]
            units = create_units({"low": low, "high": high, "scale": scale})
            assert isinstance(units, Interval)
            self.units = units

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in the cube."""
        return rows if self.units is None else self.units.to_cube(torch.from_numpy(rows)).double().numpy()

    def clip(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of the cube clipped to it; parts are then divided by their sum."""
        rows = np.clip(rows, 0.0, 1.0)
        return rows / rows.sum(1, keepdims=True) if self.units is None else rows

    def log_jacobian(self, rows: np.ndarray) -> np.ndarray:
        """Return the log Jacobian of the map to the cube at rows of the cube."""
        return 0.0 if self.units is None else self.units.log_jacobian(torch.from_numpy(rows)).numpy()


def reflected(data: BoundedData, to_cube: Cube, seed: int, density: bool) -> Outcome:
    """Run the estimator."""
    model = BoundedDiffusion(data.low, data.high, data.simplex, random_state=seed, verbose=False, **STEPS)
    model.fit(data.train)
    outcome = Outcome(to_cube(model.sample(DRAWN, random_state=seed)))
    if density:
        outcome.log_density = float(model.score_samples(data.held_out[:MOST_DENSITY]).mean())
    return outcome


def plain_ve(data: BoundedData, to_cube: Cube, seed: int, density: bool) -> Outcome:
    """Run plain VE diffusion in the coordinates of the cube, and clip."""
    drawn, logs = _train_ve(to_cube(data.train), to_cube(data.held_out) if density else None, seed)
    outside = float(((drawn < 0.0) | (drawn > 1.0)).mean())
    return Outcome(
        to_cube.clip(drawn),
        outside,
        float((logs + to_cube.log_jacobian(to_cube(data.held_out[:MOST_DENSITY]))).mean()) if density else np.nan,
    )


def logit_ve(data: BoundedData, to_cube: Cube, seed: int, density: bool) -> Outcome:
    """Run plain VE diffusion of the logits of data that are moved off the bounds by ``CLAMP``."""

    def forward(rows: np.ndarray) -> np.ndarray:
        return logit(np.clip(to_cube(rows), CLAMP, 1.0 - CLAMP))

    z = forward(data.train)
    low, high = z.min(0), z.max(0)
    drawn, logs = _train_ve(
        (z - low) / (high - low), (forward(data.held_out) - low) / (high - low) if density else None, seed
    )
    samples = expit(low + (high - low) * drawn)
    # What the clamp has moved is put back on the bounds, from the same distance.
    samples = np.where(samples <= CLAMP * (1 + 1e-6), 0.0, np.where(samples >= 1 - CLAMP * (1 + 1e-6), 1.0, samples))
    value = np.nan
    if density:
        u = np.clip(to_cube(data.held_out[:MOST_DENSITY]), CLAMP, 1 - CLAMP)
        jacobian = -np.log(u * (1 - u) * (high - low)).sum(1) + to_cube.log_jacobian(u)
        value = float((logs + jacobian).mean())
    return Outcome(to_cube.clip(samples), 0.0, value)


def _train_ve(rows: np.ndarray, held_out: np.ndarray | None, seed: int) -> tuple[np.ndarray, Any]:
    """Train plain VE on rows of the cube; return samples, and the log density of held-out rows there."""
    order = np.random.RandomState(seed).permutation(len(rows))
    inner = max(1, len(rows) // 10)
    options = {
        "data.low": [0.0] * rows.shape[1],
        "data.high": [1.0] * rows.shape[1],
        "data.levels": 0,
        "sde.name": "ve",
        "sde.sigma_min": BoundedDiffusion().sigma_min,
        "model.parametrization": "edm",
        "training.n_iters": STEPS["n_iter"],
        "seed": seed,
        "device": "cpu",
    }
    rows = np.clip(rows, 0.0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        run, best = train_run(rows[order[inner:]], rows[order[:inner]], options, Path(folder), False)
        net, cfg = load_pretrained(run, best)
    process = create_process(cfg.sde)
    sampler = create_sampler({"method": "multistep", "steps": None}, process, parametrization=net.parametrization)
    drawn = draw_samples(net, process, sampler, net.data_shape, range(DRAWN), seed).samples.double().numpy()
    if held_out is None:
        return drawn, None
    x = torch.from_numpy(held_out[:MOST_DENSITY]).float()
    return drawn, log_likelihood(net, process, x, "exact", rtol=1e-4, atol=1e-4).log_prob.double().numpy()


def kernel_density(data: BoundedData, to_cube: Cube, seed: int, density: bool) -> Outcome:
    """Fit a Gaussian kernel density in the coordinates of the cube, its bandwidth by cross-validation, and clip."""
    rows = to_cube(data.train)
    search = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.005, 0.5, 12)}, cv=5)
    search.fit(rows[np.random.RandomState(seed).permutation(len(rows))])
    drawn = search.best_estimator_.sample(DRAWN, random_state=seed)
    value = np.nan
    if density:
        u = to_cube(data.held_out[:MOST_DENSITY])
        value = float((search.best_estimator_.score_samples(u) + to_cube.log_jacobian(u)).mean())
    return Outcome(to_cube.clip(drawn), float(((drawn < 0.0) | (drawn > 1.0)).mean()), value)


def parametric(data: BoundedData, to_cube: Cube, seed: int, density: bool) -> Outcome:
    """Fit a Dirichlet distribution to compositions, and independent beta distributions to columns, by moments."""
    rng, rows = np.random.default_rng(seed), to_cube(data.train)
    mean, variance = rows.mean(0), rows.var(0)
    total = mean * (1 - mean) / variance - 1  # the sum of the parameters
    if data.simplex:
        return Outcome(rng.dirichlet(mean * np.exp(np.log(total).mean()), DRAWN))
    return Outcome(rng.beta(mean * total, (1 - mean) * total, (DRAWN, rows.shape[1])))


METHODS = {
    "reflected": reflected,
    "plain VE, clipped": plain_ve,
    "plain VE of logits": logit_ve,
    "kernel density, clipped": kernel_density,
    "beta, Dirichlet": parametric,
}


def masses(rows: np.ndarray) -> np.ndarray:
    """Return the shares of the values on both bounds of each column of the cube."""
    return np.concatenate([(rows == 0.0).mean(0), (rows == 1.0).mean(0)])


def run(job: tuple[str, str, int]) -> tuple[str, str, dict[str, float]]:
    """Fit a method, and return its figures by name."""
    name, method, seed = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = DATA[name]()
    to_cube = Cube(data)
    start = time.perf_counter()
    outcome = METHODS[method](data, to_cube, seed, data.log_density is not None)
    seconds = time.perf_counter() - start
    held_out = to_cube(data.held_out)
    return (
        name,
        method,
        {
            "energy distance": energy_distance(outcome.samples, held_out)[0],
            "error of the mass on bounds": float(np.abs(masses(outcome.samples) - masses(held_out)).mean()),
            "out of bounds before clipping": outcome.outside,
            "log density": outcome.log_density,
            "seconds": seconds,
        },
    )


def main() -> None:
    """Run all methods on all data, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, ... of each method")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = [
        (name, method, seed)
        for name in arguments.data
        for method in arguments.methods
        for seed in range(arguments.seeds)
    ]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with ProcessPoolExecutor(2) as pool:
        for name, method, figures in pool.map(run, jobs):
            found.setdefault((name, method), []).append(figures)
            print(name, method, figures, file=sys.stderr, flush=True)
    for name in arguments.data:
        data = DATA[name]()
        held_out = Cube(data)(data.held_out)
        real = energy_distance(Cube(data)(data.train), held_out)
        print(f"\n{name}: {len(data.train)} x {data.train.shape[1]} rows to train on, {len(data.held_out)} held out")
        print(
            f"training rows: energy distance {real[0]:.5f} +- {real[1]:.5f}, mass on bounds {np.abs(masses(Cube(data)(data.train)) - masses(held_out)).mean():.4f}"
        )
        if data.log_density is not None:
            print(f"exact log density {data.log_density(data.held_out[:MOST_DENSITY]).mean():.3f}")
        keys = list(found[name, arguments.methods[0]][0])
        print("| method | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 1))
        for method in arguments.methods:
            rows = found[name, method]
            print(f"| {method} | " + " | ".join(_mean([row[key] for row in rows]) for key in keys) + " |")


def _mean(values: list[float]) -> str:
    error = f" +- {np.std(values, ddof=1) / len(values) ** 0.5:.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{error}"


if __name__ == "__main__":
    main()

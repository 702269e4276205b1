"""How near are samples of bounded data to held-out rows? python -m benchmarks.bounded [--data ...] [--seeds N]

Compares ``bounded.BoundedDiffusion`` with the same network and steps as plain VE diffusion, whose samples are clipped;
with plain VE of the logits of the data; with scikit-learn's kernel density, clipped; with stick breaking in place of
sorting for compositions; and with a Dirichlet or independent beta distributions. Prints a table for each data set,
mean and standard error over the seeds. Two jobs run at a time, on one thread each.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
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
from evaluation.likelihood import log_likelihood
from models import load_pretrained
from sampling import create_sampler
from sampling.draw import draw_samples
from sde import create_process
from utils.energy_distance import energy_distance
from utils.errors import UserError

DRAWN = 2000
CLAMP = 1e-3  # distance from the bounds to which the logit needs the data moved, in units of their range
MEASURED = 200  # held-out rows of which the density is computed
TOLERANCE = 1e-4  # of the flow
SMALL = 1e-3  # least moments of a column for the fit of a beta distribution


@dataclass
class Outcome:
    """What a method returns.

    Attributes:
        samples: rows in the coordinates of ``Cube``, within the bounds.
        outside: share of the values that were out of bounds before clipping.
        log_density: mean log density of held-out rows in the units of the data; NaN for none.
    """

    samples: np.ndarray
    outside: float = 0.0
    log_density: float = np.nan


class Cube:
    """The coordinates in which data are compared: columns in [0, 1], or the parts of compositions.

    Args:
        data: rows and bounds.
    """

    def __init__(self, data: BoundedData) -> None:
        self.units: Interval | None = None
        if not data.simplex:
            low, high = (
                [*end] if isinstance(end, list) else [end] * data.train.shape[1] for end in (data.low, data.high)
            )
            scale = [float(column[column > 0].mean()) if column.any() else 1.0 for column in data.train.T]
            units = create_units({"low": low, "high": high, "scale": scale})
            assert isinstance(units, Interval)
            self.units = units

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in these coordinates."""
        return rows if self.units is None else self.units.to_cube(torch.from_numpy(rows)).double().numpy()

    def clip(self, rows: np.ndarray) -> np.ndarray:
        """Return rows clipped to the bounds; parts are then divided by their sum."""
        rows = np.clip(rows, 0.0, 1.0)
        return rows / rows.sum(1, keepdims=True) if self.units is None else rows

    def log_jacobian(self, rows: np.ndarray) -> np.ndarray:
        """Return the log Jacobian of columns at rows of the cube, (N,)."""
        assert self.units is not None, "compositions are not compared by their density"
        return self.units.log_jacobian(torch.from_numpy(rows)).numpy()


def reflected(data: BoundedData, cube: Cube, seed: int) -> Outcome:
    """Run the estimator."""
    model = BoundedDiffusion(data.low, data.high, data.simplex, random_state=seed, device="cpu", verbose=False)
    drawn = model.fit(data.train).sample(DRAWN, random_state=seed)
    density = data.log_density is not None
    return Outcome(cube(drawn), 0.0, model.score_samples(data.held_out[:MEASURED]).mean() if density else np.nan)


def stick_breaking(data: BoundedData, cube: Cube, seed: int) -> Outcome | None:
    """Run the reflected process of the cube on compositions mapped to it by stick breaking."""
    if not data.simplex:
        return None
    diffusion = Diffusion(data.train, {"data.simplex": "sticks"}, seed)
    units = create_units(diffusion.cfg.data)
    assert units is not None
    drawn = torch.from_numpy(diffusion.sample()).float()
    return Outcome(units.from_cube(units.snap(drawn, diffusion.process.sigma_min)).numpy())


def plain_ve(data: BoundedData, cube: Cube, seed: int) -> Outcome:
    """Run plain VE diffusion, and clip."""
    diffusion = Diffusion(cube(data.train), VE, seed)
    drawn = diffusion.sample()
    outcome = Outcome(cube.clip(drawn), ((drawn < 0.0) | (drawn > 1.0)).mean())
    if data.log_density is not None:
        u = cube(data.held_out[:MEASURED])
        outcome.log_density = (diffusion.log_density(u) + cube.log_jacobian(u)).mean()
    return outcome


def logit_ve(data: BoundedData, cube: Cube, seed: int) -> Outcome:
    """Run plain VE diffusion of logits; values nearer than ``CLAMP`` to a bound are moved, and put back on it after."""

    def forward(rows: np.ndarray) -> np.ndarray:
        return logit(np.clip(rows, CLAMP, 1.0 - CLAMP))

    z = forward(cube(data.train))
    low, width = z.min(0), np.maximum(np.ptp(z, 0), CLAMP)  # some columns are constant
    diffusion = Diffusion((z - low) / width, VE, seed)
    drawn = expit(low + width * diffusion.sample())
    near = CLAMP * (1 + 1e-6)
    outcome = Outcome(cube.clip(np.where(drawn <= near, 0.0, np.where(drawn >= 1.0 - near, 1.0, drawn))))
    if data.log_density is not None:
        u = np.clip(cube(data.held_out[:MEASURED]), CLAMP, 1.0 - CLAMP)
        jacobian = cube.log_jacobian(u) - np.log(u * (1.0 - u) * width).sum(1)
        outcome.log_density = (diffusion.log_density((forward(u) - low) / width) + jacobian).mean()
    return outcome


def kernel_density(data: BoundedData, cube: Cube, seed: int) -> Outcome:
    """Fit a Gaussian kernel density, its bandwidth by cross-validated likelihood, and clip its samples."""
    rows = cube(data.train)[np.random.RandomState(seed).permutation(len(data.train))]
    search = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.005, 0.5, 12)}, cv=5).fit(rows)
    drawn = search.best_estimator_.sample(DRAWN, random_state=seed)
    outcome = Outcome(cube.clip(drawn), ((drawn < 0.0) | (drawn > 1.0)).mean())
    if data.log_density is not None:
        u = cube(data.held_out[:MEASURED])
        outcome.log_density = (search.best_estimator_.score_samples(u) + cube.log_jacobian(u)).mean()
    return outcome


def parametric(data: BoundedData, cube: Cube, seed: int) -> Outcome:
    """Fit a Dirichlet distribution to compositions, and independent beta distributions to columns, by moments."""
    rng, rows = np.random.default_rng(seed), cube(data.train)
    mean = rows.mean(0).clip(SMALL, 1.0 - SMALL)
    total = np.maximum(mean * (1.0 - mean) / rows.var(0).clip(min=SMALL) - 1.0, SMALL)  # the sum of the parameters
    if data.simplex:
        return Outcome(rng.dirichlet(mean * np.exp(np.log(total).mean()), DRAWN))
    return Outcome(rng.beta(mean * total, (1.0 - mean) * total, (DRAWN, len(mean))))


METHODS: dict[str, Callable[[BoundedData, Cube, int], Outcome | None]] = {
    "reflected": reflected,
    "stick breaking": stick_breaking,
    "plain VE, clipped": plain_ve,
    "plain VE of logits": logit_ve,
    "kernel density, clipped": kernel_density,
    "beta or Dirichlet": parametric,
}
VE = {"sde.name": "ve", "model.parametrization": "edm", "data.low": 0.0, "data.high": 1.0}


class Diffusion:
    """A network that is trained as ``BoundedDiffusion`` trains its own, with other options.

    Args:
        rows: rows to train on, (N, D), of which a tenth is held out to choose the checkpoint.
        options: values for keys of the configuration.
        seed: seed of the run.
    """

    def __init__(self, rows: np.ndarray, options: dict[str, Any], seed: int) -> None:
        default = BoundedDiffusion()
        held_out, own = np.split(np.random.RandomState(seed).permutation(len(rows)), [len(rows) // 10])
        shared = {"training.n_iters": default.n_iter, "sde.sigma_min": default.sigma_min, "device": "cpu", "seed": seed}
        with tempfile.TemporaryDirectory() as folder:
            run, best = train_run(
                rows[own], rows[held_out], {"data.levels": 0, **shared, **options}, Path(folder), False
            )
            self.net, self.cfg = load_pretrained(run, best)
        self.process, self.seed, self.steps = create_process(self.cfg.sde), seed, default.steps

    def sample(self) -> np.ndarray:
        """Draw ``DRAWN`` points, float64 (DRAWN, D)."""
        cfg = {"method": "pc", "predictor": "ancestral", "steps": self.steps}
        sampler = create_sampler(cfg, self.process, parametrization=self.net.parametrization)
        drawn = draw_samples(self.net, self.process, sampler, self.net.data_shape, range(DRAWN), self.seed)
        return drawn.samples.double().numpy()

    def log_density(self, u: np.ndarray) -> np.ndarray:
        """Compute the log density of the flow at points, (N,); minus infinity where it cannot be integrated."""
        try:
            found = log_likelihood(
                self.net, self.process, torch.from_numpy(u).float(), "exact", rtol=TOLERANCE, atol=TOLERANCE
            )
        except UserError:
            return np.full(len(u), -np.inf)
        return found.log_prob.double().numpy()


def masses(rows: np.ndarray) -> np.ndarray:
    """Return the share of the values on the lower and on the upper bound of each column."""
    return np.concatenate([(rows == 0.0).mean(0), (rows == 1.0).mean(0)])


def distance_of_masses(rows: np.ndarray, others: np.ndarray) -> float:
    """Return the mean absolute difference of the masses on the bounds."""
    return float(np.abs(masses(rows) - masses(others)).mean())


def run(job: tuple[str, str, int]) -> tuple[str, str, dict[str, float]]:
    """Fit a method, and return its figures by name."""
    name, method, seed = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = DATA[name]()
    cube = Cube(data)
    start = time.perf_counter()
    outcome = METHODS[method](data, cube, seed)
    seconds = time.perf_counter() - start
    if outcome is None:
        return name, method, {}
    held_out = cube(data.held_out)
    figures = {
        "energy distance": energy_distance(outcome.samples, held_out)[0],
        "error of the mass on bounds": distance_of_masses(outcome.samples, held_out),
        "out of bounds before clipping": float(outcome.outside),
        "log density": float(outcome.log_density),
        "seconds": seconds,
    }
    return name, method, figures


def main() -> None:
    """Run all methods on all data, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, ... of each method")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    seeds = range(arguments.seeds)
    jobs = [(name, method, seed) for name in arguments.data for method in arguments.methods for seed in seeds]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with ProcessPoolExecutor(2) as pool:
        for name, method, figures in pool.map(run, jobs):
            if figures:
                found.setdefault((name, method), []).append(figures)
                print(name, method, figures, file=sys.stderr, flush=True)
    for name in arguments.data:
        data = DATA[name]()
        train, held_out = map(Cube(data), (data.train, data.held_out))
        print(f"\n{name}: {len(train)} rows of {train.shape[1]} to train on, {len(held_out)} held out")
        value, error = energy_distance(train, held_out)
        print(
            f"training rows: energy distance {value:.5f} +- {error:.5f}, mass {distance_of_masses(train, held_out):.4f}"
        )
        if data.log_density is not None:
            print(f"exact log density {data.log_density(data.held_out[:MEASURED]).mean():.3f}")
        keys = [
            "energy distance",
            "error of the mass on bounds",
            "out of bounds before clipping",
            "log density",
            "seconds",
        ]
        print("| method | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 1))
        for method in arguments.methods:
            if rows := found.get((name, method)):
                print(f"| {method} | " + " | ".join(_mean([row[key] for row in rows]) for key in keys) + " |")


def _mean(values: list[float]) -> str:
    if not np.isfinite(values).all():
        return ""
    error = f" +- {np.std(values, ddof=1) / len(values) ** 0.5:.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{error}"


if __name__ == "__main__":
    main()

"""Bounded data for benchmarks/bounded.py: from scikit-learn, vega_datasets and statsmodels, or exactly known."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from datasets.array_files import read_arrays
from sde import heat_kernel

SEED = 0  # of the splits, and of the data that are drawn


@dataclass(frozen=True)
class BoundedData:
    """Rows to train on and held-out rows, with their bounds.

    Attributes:
        train, held_out: rows, float64 (N, D).
        low, high: bounds as for ``bounded.BoundedDiffusion``.
        simplex: whether the rows are compositions.
        log_density: exact log density of rows, where they have a density and it is known.
    """

    train: np.ndarray
    held_out: np.ndarray
    low: Any
    high: Any
    simplex: bool = False
    log_density: Callable[[np.ndarray], np.ndarray] | None = None


def _split(rows: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and a random ``share`` that is held out."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    count = round(share * len(rows))
    return rows[order[count:]], rows[order[:count]]


def _table(package: str, file: str, columns: list[str]) -> np.ndarray:
    """Read columns of a CSV file that an installed package ships."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"pip install {package}: it ships {file}")
    return read_arrays(Path(spec.origin).parent / file, package, columns).x.astype(np.float64)


def digits() -> BoundedData:
    """Load scikit-learn's handwritten digits as 64 columns from 0 to 16."""
    return BoundedData(*_split(load_digits().data, 0.2), low=0, high=16)


def rain() -> BoundedData:
    """Load the weather of Seattle, 1,461 days: precipitation (mm), wind (m/s) and highest temperature (Celsius)."""
    columns = ["precipitation", "wind", "temp_max"]
    rows = _table("vega_datasets", "_data/seattle-weather.csv", columns)
    return BoundedData(*_split(rows, 1 / 3), low=[0, 0, -10], high=["open", "open", 45])


def percentages() -> BoundedData:
    """Load percentages of 303 school districts: poverty, three minorities, and three of teachers, schools and years."""
    columns = ["LOWINC", "PERASIAN", "PERBLACK", "PERHISP", "PCTAF", "PCTCHRT", "PCTYRRND"]
    return BoundedData(*_split(_table("statsmodels", "datasets/star98/star98.csv", columns), 1 / 3), low=0, high=100)


def compositions() -> BoundedData:
    """Divide the ink of each handwritten digit among its eight columns of pixels: eight parts, some exactly 0."""
    ink = load_digits().images.sum(1)
    return BoundedData(*_split(ink / ink.sum(1, keepdims=True), 0.2), low=None, high=None, simplex=True)


def series() -> BoundedData:
    """Draw series of 24 steps in [0, 1], x' = reflect(0.5 + 0.9 (x - 0.5) + 0.15 z), from a uniform start."""
    generator = torch.Generator().manual_seed(SEED)
    x = [torch.rand(5000, generator=generator, dtype=torch.float64)]
    for _ in range(23):
        x.append(heat_kernel.sample(_mean(x[-1]), 0.15, generator))
    rows = torch.stack(x, 1).numpy()
    return BoundedData(rows[:3000], rows[3000:], low=0, high=1, log_density=_series_log_density)


def _mean(x: torch.Tensor) -> torch.Tensor:
    return 0.5 + 0.9 * (x - 0.5)


def _series_log_density(rows: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(rows)
    return heat_kernel.log_density(x[:, 1:], _mean(x[:, :-1]), 0.15).sum(1).numpy()


def square() -> BoundedData:
    """Draw points of the square on a circle with normal noise, clipped, so that faces and a corner have mass."""
    rng = np.random.default_rng(SEED)
    angle = rng.uniform(0, 2 * math.pi, 5000)
    rows = np.stack([0.7 + 0.45 * np.cos(angle), 0.3 + 0.45 * np.sin(angle)], 1) + 0.04 * rng.standard_normal((5000, 2))
    rows = np.clip(rows, 0, 1)
    return BoundedData(rows[:3000], rows[3000:], low=0, high=1)


DATA: dict[str, Callable[[], BoundedData]] = {
    "digits": digits,
    "rain": rain,
    "percentages": percentages,
    "compositions": compositions,
    "series": series,
    "square": square,
}

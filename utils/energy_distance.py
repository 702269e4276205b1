"""The energy distance between two samples of vectors (Szekely & Rizzo 2013)."""

import numpy as np
import torch
from torch import Tensor

ROWS = 256  # rows of a matrix of distances that are in memory at once


def mean_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute the mean Euclidean distance of each vector to all of others.

    Args:
        x: vectors, float64 (N, D).
        y: vectors, float64 (M, D).

    Returns:
        Mean over y for each x, float64 (N,).
    """
    return torch.cat([torch.cdist(part, y).mean(1) for part in x.split(ROWS)])


def distances_within(x: Tensor, others: Tensor) -> Tensor:
    """Compute the mean Euclidean distance of each vector to all but itself.

    Args:
        x: some of the vectors, float64 (N, D).
        others: all vectors, those of x among them, float64 (M, D).

    Returns:
        Mean over the other vectors for each x, float64 (N,).
    """
    return mean_distances(x, others) * (len(others) / (len(others) - 1))


def combine(across: np.ndarray, within: np.ndarray, other: float) -> tuple[float, float]:
    """Estimate 2 E|X - Y| - E|X - X'| - E|Y - Y'| without bias from distances of the samples of X.

    Args:
        across: mean distance of each sample of X to those of Y, (N,).
        within: mean distance of each sample of X to the others of X, (N,).
        other: mean distance of the samples of Y to each other.

    Returns:
        The estimate, and its standard error due to the finite number of samples of X.
    """
    distance = 2 * across.mean() - within.mean() - other
    return float(distance), float(2 * (across - within).std() / np.sqrt(len(across)))


def energy_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Estimate the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| without bias, |.| being the Euclidean norm.

    Args:
        x: samples of X as vectors, (N, D).
        y: samples of Y as vectors, (M, D).

    Returns:
        The estimate, and its standard error due to the finite number of samples of X.
    """
    a, b = (torch.as_tensor(z, dtype=torch.float64) for z in (x, y))
    other = distances_within(b, b).mean().item()
    return combine(mean_distances(a, b).numpy(), distances_within(a, a).numpy(), other)

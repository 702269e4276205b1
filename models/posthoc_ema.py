"""Averages of the weights over a power of the step, and their reconstruction in other lengths after training.

Karras et al., "Analyzing and improving the training dynamics of diffusion models" (2024), sections 3.1 and 3.2 and
appendix C. The average at step t weighs the weights of step s by the profile p(s) = (gamma + 1) s^gamma /
t^(gamma + 1), 0 < s <= t. Its length is relative to t: sigma_rel is the standard deviation of p divided by t.
"""

from collections.abc import Sequence

import numpy as np

# Rounding to float16 changes a value by 2^-12 of its size on average: an average that enters with coefficient 1 is
# held to be as wrong as a profile that is 2^-12 of its norm away. It matters where snapshots are a few steps apart,
# whose difference could otherwise get a huge coefficient.
ROUNDING = 2.0**-12


def gamma_of(length: float) -> float:
    """Return the exponent gamma of the average of relative length ``length``, sigma_rel in (0, 12^(-1/2)].

    gamma is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2.

    Raises:
        ValueError: for another length.
    """
    if not 0 < length <= 12**-0.5:
        raise ValueError(f"a relative length of {length} is not in (0, {12**-0.5:.3g}]")
    inverse = length**-2
    return float(max(0.0, np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max()))


def decay_of(step: int, gamma: float) -> float:
    """Return the decay of update ``step``, from 1, (1 - 1/step)^(gamma + 1): 0 for the first."""
    return (1.0 - 1.0 / step) ** (gamma + 1.0)


def inner_products(
    gammas: np.ndarray, steps: np.ndarray, other_gammas: np.ndarray, other_steps: np.ndarray
) -> np.ndarray:
    """Compute the integrals of the products of two profiles each, over s.

    Args:
        gammas: exponents, (N,).
        steps: steps at which the profiles end, (N,), in any unit.
        other_gammas: exponents of the other profiles, (M,).
        other_steps: steps at which these end, (M,), in the same unit.

    Returns:
        Integrals, float64 (N, M), in the inverse of this unit.
    """
    a, b = (np.asarray(x, np.float64)[:, None] for x in (gammas, steps))
    c, d = (np.asarray(x, np.float64)[None] for x in (other_gammas, other_steps))
    first, last = np.minimum(b, d), np.maximum(b, d)
    return (a + 1) * (c + 1) / (a + c + 1) * (first / b) ** a * (first / d) ** c / last


def coefficients(stored: Sequence[tuple[float, int]], length: float, step: int) -> tuple[np.ndarray, float]:
    """Return the linear combination of stored averages that is nearest to the average of another length.

    The profile of the combination has the smallest squared distance to the profile asked for, plus ``ROUNDING``^2
    times the squared coefficients, under the condition that the coefficients add up to 1. A stored average is returned
    as it is.

    Args:
        stored: relative length and step of each average.
        length: relative length asked for.
        step: step asked for.

    Returns:
        The coefficients, float64 (N,), and the distance of the profiles as a share of the norm of the one asked for.
    """
    if (length, step) in stored:
        return np.array([float(pair == (length, step)) for pair in stored]), 0.0
    gammas = np.array([gamma_of(own) for own, _ in stored])
    ends = np.array([end / step for _, end in stored])
    target, one = np.array([gamma_of(length)]), np.ones(1)
    gram = inner_products(gammas, ends, gammas, ends)
    products = inner_products(gammas, ends, target, one)[:, 0]
    square = inner_products(target, one, target, one)[0, 0]
    norms = np.sqrt(np.diag(gram))
    matrix = gram / np.outer(norms, norms) + np.diag(ROUNDING**2 * square / norms**2)
    free, along = (np.linalg.solve(matrix, side / norms) / norms for side in (products, np.ones_like(norms)))
    found = free + along * (1.0 - free.sum()) / along.sum()
    distance = square - 2.0 * found @ products + found @ gram @ found
    return found, float(np.sqrt(max(0.0, distance) / square))

"""Maps between compositions, points of the probability simplex, and points of the unit cube.

A composition has n + 1 parts, not negative, of sum 1. Its densities are with respect to its first n parts.
"""

import torch
from torch import Tensor


def to_ordered(parts: Tensor) -> Tensor:
    """Map compositions to ordered points of the cube, their cumulative sums.

    The sums are computed in float64 and divided by the last: parts of any sum are taken in proportion to it. A part is
    0 exactly if two coordinates are equal, or if the first is 0 or the last is 1; in a narrower type than float64, also
    if it is below the rounding of the sums. The determinant of the Jacobian is 1, so that densities are equal.

    Args:
        parts: parts, not negative, with a positive sum, (..., n + 1).

    Returns:
        Points 0 <= x_1 <= ... <= x_n <= 1 in the type of ``parts``, (..., n).
    """
    sums = parts.double().cumsum(-1)
    return (sums[..., :-1] / sums[..., -1:]).to(parts.dtype)


def from_ordered(x: Tensor) -> Tensor:
    """Map ordered points, (..., n), to compositions, their gaps, (..., n + 1); the inverse of ``to_ordered``."""
    ends = x.new_zeros(*x.shape[:-1], 1), x.new_ones(*x.shape[:-1], 1)
    return torch.diff(x, prepend=ends[0], append=ends[1])


def to_sticks(parts: Tensor) -> Tensor:
    """Map compositions to points of the cube by stick breaking; the inverse of ``from_sticks``.

    x_i is the share of part i in the parts 1 to i and n + 1 together. Where all of these are 0, any x_i gives the same
    composition, and the result is 0.

    Args:
        parts: parts, not negative, with a positive sum, (..., n + 1).

    Returns:
        Points in [0, 1] in the type of ``parts``, (..., n).
    """
    first, last = parts.double().split([parts.shape[-1] - 1, 1], -1)
    rest = last + first.cumsum(-1)
    return torch.where(rest > 0, first / torch.where(rest > 0, rest, 1.0), 0.0).to(parts.dtype)


def from_sticks(x: Tensor) -> Tensor:
    """Map points of the cube to compositions by stick breaking (Lou & Ermon 2023, the map of the cube to the simplex).

    part_i = x_i prod_{j>i} (1 - x_j) for i = 1 ... n, and part_{n+1} = prod_j (1 - x_j).

    Args:
        x: points in [0, 1], (..., n).

    Returns:
        Compositions, (..., n + 1).
    """
    left = (1.0 - x.flip(-1)).cumprod(-1).flip(-1)  # prod_{j>=i} (1 - x_j)
    beyond = torch.cat([left[..., 1:], torch.ones_like(left[..., :1])], -1)
    return torch.cat([x * beyond, left[..., :1]], -1)


def sticks_log_det(x: Tensor) -> Tensor:
    """Compute the log determinant of the Jacobian of the first n parts of ``from_sticks``.

    The Jacobian is triangular, with prod_{j>i} (1 - x_j) on its diagonal, and so the result is
    sum_j (j - 1) log(1 - x_j): minus infinity if a coordinate after the first is 1.

    Args:
        x: points in [0, 1], (..., n).

    Returns:
        Logarithms, (...).
    """
    before = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.special.xlog1py(before, -x).sum(-1)

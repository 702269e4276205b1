"""The state space: the unit hypercube [0, 1]^D."""

import torch
from torch import Tensor


def reflect(x: Tensor) -> Tensor:
    """Fold any real tensor into [0, 1] by reflections at 0 and 1, elementwise.

    The fold is exact: fmod has no rounding, and 2 - r is exact for r in [1, 2], so the result is the
    closest representable number to the true reflection (of the given floating-point input), and points of
    the cube are returned unchanged. Non-finite input gives NaN.
    """
    # Fold |x|, not x: remainder(-1e-9, 2) would round to 2 and lose the point.
    r = torch.fmod(x.abs(), 2.0)
    return torch.minimum(r, 2.0 - r)

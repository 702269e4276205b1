"""The flow on the cube as a flow in free space, and the noise levels at which it is worth asking."""

import torch
from torch import Tensor

from sampling.base import ScoreFn
from sde import ReflectedVE, cube

# Above this noise level the density differs from the uniform one by less than 2 exp(-pi^2 1.5^2 / 2) = 3e-5 in each
# coordinate: nothing moves, and what a network says there is its error.
UNIFORM_FROM = 1.5
RHO = 7.0  # of Karras et al. (2022): levels are equidistant in sigma^(1/RHO)


def unfolded_score(score_fn: ScoreFn, y: Tensor, sigma: Tensor) -> Tensor:
    """The score at reflect(y), as a field on all of space: turned over in coordinates where floor(y) is odd.

    Args:
        score_fn: asked inside the cube only.
        y: any points, (B, ...).
        sigma: noise levels, (B,).
    """
    return fold_sign(y) * score_fn(cube.reflect(y), sigma.to(y.dtype))


def fold_sign(y: Tensor) -> Tensor:
    """-1 where the fold of ``y`` turns a coordinate over, 1 elsewhere; in its shape."""
    return torch.where(torch.remainder(y, 2.0) > 1.0, -1.0, 1.0).to(y.dtype)


def karras_sigmas(sde: ReflectedVE, steps: int) -> list[float]:
    """The levels sigma_0 > ... > sigma_steps = sigma_min between which a sampler with few steps moves.

    They are those of Karras et al. (2022, eq. 5), from the level where the process is uniform instead of sigma_max.
    """
    top = sde.sigma_max if sde.sigma_min >= UNIFORM_FROM else min(sde.sigma_max, UNIFORM_FROM)
    exponents = torch.linspace(top ** (1.0 / RHO), sde.sigma_min ** (1.0 / RHO), steps + 1, dtype=torch.float64)
    return exponents.pow(RHO).tolist()

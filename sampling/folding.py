"""The probability flow in unfolded coordinates, and the noise levels of samplers with few steps.

A process on a bounded domain moves in coordinates y that are free in space, with x = project(y). For a process in all
of space, project is the identity and nothing is folded.
"""

from torch import Tensor

from sampling.base import ScoreFn
from sde import Process
from sde.multistep import RHO, karras_levels


def folded_score(process: Process, score_fn: ScoreFn, y: Tensor, sigma: Tensor) -> Tensor:
    """Compute the score in unfolded coordinates: that at project(y), pulled back to ``y``.

    Args:
        process: diffusion process, with ``project`` and ``pullback``.
        score_fn: score_fn(x, sigma), which is evaluated in the domain of the process only.
        y: any points, (B, ...).
        sigma: noise levels, (B,).
    """
    return process.pullback(y, score_fn(process.project(y), sigma.to(y.dtype)))


def karras_sigmas(process: Process, steps: int, top: float | None = None, rho: float = RHO) -> list[float]:
    """Compute the levels sigma_0 > ... > sigma_steps = sigma_min between which a sampler with few steps moves.

    They are those of Karras et al. (2022, eq. 5).

    Args:
        process: diffusion process.
        steps: number of steps.
        top: first level; None for that from which on the process has reached its prior.
        rho: spacing: the levels are equidistant in sigma^(1 / rho).
    """
    return karras_levels(process.prior_sigma if top is None else top, process.sigma_min, steps, rho)

"""Drawing of the unknown coordinates of a sample given the known ones, by sequential Monte Carlo.

The method is that of Trippe et al. (2023, SMCDiff; convergence in their proposition 2). The known coordinates go from
noise to their values along a path of the process; particles of the reversed process move the unknown ones beside it,
and those survive under which the path is probable.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from sampling.base import Samples, ScoreFn
from sampling.folding import karras_sigmas
from sde import Process
from utils.errors import InputError
from utils.seeds import BatchGenerator

PARTICLES, STEPS = 32, 200


@torch.no_grad()
def impute(
    score_fn: ScoreFn,
    process: Process,
    given: Tensor,
    known: Tensor,
    *,
    steps: int = STEPS,
    particles: int = PARTICLES,
    generator: Generator | Sequence[Generator] | None = None,
    on_step: Callable[[], object] | None = None,
) -> Samples:
    """Draw points at sigma_min given some of their coordinates: exact as ``particles`` and ``steps`` grow.

    With the steps of ancestral sampling (``PredictorCorrector``), x' = project(x + v score + sqrt(u) z). Between two
    of them the weight of a particle x is multiplied by the density of the known part of x' at the next point of the
    path, which is the kernel of variance u around project(x + v score). Particles are resampled, systematically, where
    the effective number 1 / sum w^2 has fallen below half of them (before z is drawn, on which the weight does not
    depend). The path of the process ends in ``given``: it is the projection of a Brownian bridge.

    Args:
        score_fn: score_fn(x, sigma) with x (B P, ...) in the domain of the process and sigma (B P,), for B points and
            P particles; those of a point follow each other, so that labels of the points are needed as
            ``labels.repeat_interleave(particles)``.
        process: diffusion process, in which the coordinates of x_t given x_0 are independent.
        given: points with the known values, (B, ...); the others are not read and may be NaN.
        known: True or not 0 where ``given`` is known, in its shape or that of one point.
        steps: number of steps, between ``karras_sigmas``.
        particles: number of particles P of each point.
        generator: source of the noise, on the device of ``given``; or one for each of the B points, so that none
            depends on its batch.
        on_step: function called ``steps`` times, for a progress bar.

    Returns:
        Samples, (B, ...), in which the known values are those of ``given``.

    Raises:
        InputError: for a process of another kind, or a known value that is not in its domain.
    """
    known = known.to(device=given.device, dtype=torch.bool).expand(given.shape)
    check_given(process, given, known)
    given = given.where(known, 0.0)
    n, noise, sigmas = len(given), BatchGenerator(generator), karras_sigmas(process, steps)
    rows = torch.arange(n, device=given.device)[:, None] * particles
    known_rows = known.repeat_interleave(particles, 0)

    def bridge_variance(sigma: float) -> float:
        return sigma**2 - sigmas[-1] ** 2

    path = given + math.sqrt(bridge_variance(sigmas[0])) * noise.randn_like(given)
    x = process.prior_sample((n, particles, *given.shape[1:]), generator, given.device, given.dtype).flatten(0, 1)
    x = process.project(path).repeat_interleave(particles, 0).where(known_rows, x)
    log_weights = given.new_zeros(n, particles)
    for sigma, following in itertools.pairwise(sigmas):
        variance = sigma**2 - following**2
        std = math.sqrt(variance) * following / sigma
        mean = x + variance * score_fn(x, x.new_full((len(x),), sigma))

        left = bridge_variance(following) / bridge_variance(sigma)
        path = given + left * (path - given) + math.sqrt(variance * left) * noise.randn_like(given)
        target = process.project(path).repeat_interleave(particles, 0)

        time = process.time(torch.tensor(std, dtype=torch.float64)).item()
        density = process.log_density(target, process.project(mean), time)
        log_weights = log_weights + density.where(known_rows, 0.0).flatten(1).sum(1).reshape(n, particles)
        chosen, log_weights = _resample(log_weights, noise.rand((n, 1), given.device, given.dtype))
        step = std * noise.randn((n, particles, *given.shape[1:]), given.device, given.dtype).flatten(0, 1)
        x = target.where(known_rows, process.project(mean[(rows + chosen).flatten()] + step))
        if on_step is not None:
            on_step()
    last = _positions(log_weights, noise.rand((n, 1), given.device, given.dtype))
    return Samples(given.where(known, x[(rows + last).flatten()]), steps)


def check_given(process: Process, given: Tensor, known: Tensor) -> None:
    """Raise InputError unless ``process`` and the values of ``given`` where ``known``, of its shape, can be imputed."""
    if not process.elementwise:
        raise InputError("imputation needs a process that moves each coordinate by itself")
    values = given[known]
    if not len(values):
        return
    if not values.isfinite().all():
        raise InputError("imputation needs finite values where they are known")
    low, high = values.aminmax()
    if process.bounded and not (low >= 0.0 and high <= 1.0):
        raise InputError(f"imputation needs known values in [0, 1], but they go from {low:g} to {high:g}")


def _resample(log_weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Choose particles by their weights (B, P), systematically from ``u`` (B, 1), if the effective number is low.

    Returns:
        The numbers of the chosen particles, (B, P), all of them in order where none is resampled; and their weights.
    """
    particles = log_weights.shape[1]
    weights = log_weights.softmax(1)
    degenerate = weights.square().sum(1, keepdim=True) * particles > 2.0
    every = torch.arange(particles, device=u.device)
    chosen = _positions(log_weights, (every + u) / particles)
    return chosen.where(degenerate, every), log_weights.where(~degenerate, 0.0)


def _positions(log_weights: Tensor, u: Tensor) -> Tensor:
    """Return the numbers of the particles at ``u`` (B, K) in [0, 1) of the cumulated weights (B, P)."""
    cumulated = log_weights.softmax(1).cumsum(1)
    return torch.searchsorted(cumulated / cumulated[:, -1:], u, right=True).clamp(max=log_weights.shape[1] - 1)

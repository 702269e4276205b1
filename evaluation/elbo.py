"""A variational bound on the probability of an image (docs/method.md derives it)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from losses.score_matching import score_error
from sampling.base import ScoreFn
from sde import ReflectedVE, heat_kernel
from utils.errors import InputError, UserError

LEVELS_AT_ONCE = 2**22  # numbers of the table (coordinates x levels) that the data term looks at together
INTERVALS = 32  # of time, in a proposal


@dataclass(frozen=True)
class ElboResult:
    """What ``elbo`` returns, in nats, each (B,).

    Attributes:
        data: -log of the probability, or density, of the image given what it is at sigma(0).
        diffusion: the divergence of the reversed paths.
        prior: the divergence of what the image is at sigma(1) from uniform noise.
        nfe: calls of the score function.
    """

    data: Tensor
    diffusion: Tensor
    prior: Tensor
    nfe: int

    @property
    def log_prob(self) -> Tensor:
        """The bound: at most log P(image), or log p(image), in the mean over what is random here; (B,)."""
        return -(self.data + self.diffusion + self.prior)


@torch.no_grad()
def elbo(
    score_fn: ScoreFn,
    sde: ReflectedVE,
    x0: Tensor,
    levels: int | None,
    *,
    num_times: int = 20,
    offset: Tensor | None = None,
    proposal: Tensor | None = None,
    generator: Generator | Sequence[Generator] | None = None,
    on_step: Callable[[], object] | None = None,
) -> ElboResult:
    """Evidence lower bound of the reversed process, from uniform noise at sigma_max down to the image.

    Args:
        score_fn: score_fn(x, sigma) with x (B, ...) in the cube and sigma (B,).
        sde: the process.
        x0: images in [0, 1], (B, ...).
        levels: number of grey levels, if the images consist of k / (levels - 1): the bound is then on their
            probability, for each coordinate is read from x at sigma(0) by the posterior of its level under the heat
            kernel. None for images of any values: the bound is then on their density, which is that of the model at
            sigma(0) with the kernel of sigma(0) once more.
        num_times: noise levels of an image, one in each of so many strata of equal probability.
        offset: place in the strata of each image, in [0, 1), (B,). By default, with one generator, evenly spread over
            the batch, in random order; with one for each image, uniform.
        proposal: probabilities of equal intervals of t to draw the times from, (K,), positive; None for uniform times.
            The result has the same mean for any.
        generator: source of what is random, on the device of ``x0``; or one for each of the B images, so that none
            depends on its batch.
        on_step: called ``num_times`` times.

    Raises:
        InputError: for less than one time.
        UserError: if the score is not finite.
    """
    if num_times < 1:
        raise InputError(f"num_times={num_times}: need at least 1")
    if offset is None:
        offset = _offsets(x0, generator)

    if levels is None:  # the mean of -log p(x | x0) over x, without a draw
        data = -_sum(heat_kernel.kl_to_uniform(x0.double(), sde.sigma_min))
    else:
        x = _noisy(x0, torch.full_like(x0.flatten(1)[:, 0], sde.sigma_min), generator)
        data = -_log_level(x, x0, sde.sigma_min, levels)
    diffusion = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for k in range(num_times):
        t, density = quantile(proposal, (k + offset) / num_times)
        t = t.to(x0.dtype)
        x = _noisy(x0, sde.sigma(t), generator)
        diffusion += _rate(score_fn, sde, x0, t, x) / density / num_times
        if on_step is not None:
            on_step()
    if not diffusion.isfinite().all():
        raise UserError("the score is not finite: try precision=fp32")
    prior = _sum(heat_kernel.kl_to_uniform(x0.double(), sde.sigma_max))
    return ElboResult(data, diffusion, prior, num_times)


@torch.no_grad()
def time_proposal(
    score_fn: ScoreFn, sde: ReflectedVE, x0: Tensor, generator: Generator | Sequence[Generator] | None = None
) -> Tensor:
    """Probabilities of equal intervals of t under which the diffusion term has little variance, for ``elbo``.

    Proportional to the root mean square, over the images, of what an interval adds, the best choice for independent
    times; a tenth of all times is spread evenly, so that no weight exceeds ten.

    Args:
        score_fn, sde: as for ``elbo``.
        x0: some images, (B, ...).
        generator: source of the noise; the result of ``elbo`` has the right mean if it draws from another.

    Returns:
        float64 (INTERVALS,).
    """
    found = []
    for k in range(INTERVALS):
        t = torch.full_like(x0.flatten(1)[:, 0], (k + 0.5) / INTERVALS)
        x = _noisy(x0, sde.sigma(t), generator)
        found.append(_rate(score_fn, sde, x0, t, x).square().mean().sqrt())
    sizes = torch.stack(found)
    return 0.9 * sizes / sizes.sum() + 0.1 / INTERVALS


def quantile(proposal: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor]:
    """Where the distribution function of the times is ``u``, and the density there: float64, in the shape of ``u``.

    Args:
        proposal: probabilities of equal intervals of [0, 1], (K,), up to a factor; None for one interval.
        u: in [0, 1).
    """
    if proposal is None:
        return u, torch.ones_like(u)
    heights = proposal.to(u) * (len(proposal) / proposal.sum().to(u))
    edges = torch.cat([heights.new_zeros(1), heights.cumsum(0)]) / len(heights)
    interval = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, len(heights) - 1)
    density = heights[interval]
    return (interval / len(heights) + (u - edges[interval]) / density).clamp(0.0, 1.0), density


def _offsets(x0: Tensor, generator: Generator | Sequence[Generator] | None) -> Tensor:
    """The places of the times in their strata, float64 (B,)."""
    kind: dict[str, Any] = {"dtype": torch.float64, "device": x0.device}
    if generator is None or isinstance(generator, Generator):
        places = torch.randperm(len(x0), generator=generator, device=x0.device)
        return (places + torch.rand(len(x0), generator=generator, **kind)) / len(x0)
    return torch.cat([torch.rand(1, generator=own, **kind) for own in generator])


def _rate(score_fn: ScoreFn, sde: ReflectedVE, x0: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """What the diffusion term gains per unit of time at ``t``, float64 (B,)."""
    return score_error(lambda x, sigma, _: score_fn(x, sigma), sde, x0, t, x, likelihood_weighting=True).double()


def _noisy(x0: Tensor, sigma: Tensor, generator: Generator | Sequence[Generator] | None) -> Tensor:
    if generator is None or isinstance(generator, Generator):
        return heat_kernel.sample(x0, sigma, generator)
    rows = zip(x0.split(1), sigma.split(1), generator, strict=True)
    return torch.cat([heat_kernel.sample(row, level, own) for row, level, own in rows])


def _log_level(x: Tensor, x0: Tensor, sigma: float, levels: int) -> Tensor:
    """log of the posterior probability of the levels of ``x0`` given ``x`` at ``sigma``, all alike before, (B,)."""
    values = torch.arange(levels, dtype=torch.float64, device=x.device)[None] / (levels - 1)
    rows = max(1, LEVELS_AT_ONCE // levels)
    parts = []
    for own, true in zip(x.double().reshape(-1, 1).split(rows), x0.double().reshape(-1, 1).split(rows), strict=True):
        logs = heat_kernel.log_density(own, values.expand(len(own), -1), sigma).log_softmax(1)
        parts.append(logs.gather(1, (true * (levels - 1)).round().long()))
    return torch.cat(parts).reshape(len(x), -1).sum(1)


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)

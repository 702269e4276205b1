"""The evidence lower bound on the probability of data; docs/method.md derives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from losses import DiffusionSquared, NoiseLevelSampler, UniformTime
from losses.score_matching import score_error
from sampling.base import ScoreFn
from sde import Process
from utils.errors import InputError, UserError
from utils.seeds import BatchGenerator

LEVELS_AT_ONCE = 2**22  # most elements of the table (coordinates x levels) that the data term has in memory
INTERVALS = 32  # intervals of time of a proposal


@dataclass(frozen=True)
class ElboResult:
    """The result of ``elbo``, in nats.

    Attributes:
        data: minus the logarithm of the probability, or density, of x0 given x at sigma(0), (B,).
        diffusion: divergence of the reversed paths, (B,).
        prior: divergence of x at sigma(1) given x0 from the prior, (B,).
        nfe: number of calls of the score function.
    """

    data: Tensor
    diffusion: Tensor
    prior: Tensor
    nfe: int

    @property
    def log_prob(self) -> Tensor:
        """Return the bound, (B,): its mean is at most log P(x0), or log p(x0)."""
        return -(self.data + self.diffusion + self.prior)


@torch.no_grad()
def elbo(
    score_fn: ScoreFn,
    process: Process,
    x0: Tensor,
    levels: int | None,
    *,
    num_times: int = 20,
    offset: Tensor | None = None,
    proposal: NoiseLevelSampler | None = None,
    generator: Generator | Sequence[Generator] | None = None,
    on_step: Callable[[], object] | None = None,
) -> ElboResult:
    """Estimate the evidence lower bound of the reversed process, from the prior at sigma_max down to the data.

    Args:
        score_fn: score_fn(x, sigma) with x (B, ...) in the domain and sigma (B,).
        process: diffusion process.
        x0: data in [0, 1], (B, ...).
        levels: number of grey levels, if the data consist of k / (levels - 1): the bound is then on their probability,
            and each coordinate is decoded from x at sigma(0) by the posterior of its level. None for data of any
            values: the bound is then on their density under the model at sigma(0), perturbed by the noise of sigma(0)
            once more.
        num_times: number of noise levels of a sample, one in each of as many strata of equal probability.
        offset: position in the strata for each sample, in [0, 1), (B,). By default it is stratified over the batch with
            one generator, and uniform with one for each sample.
        proposal: distribution of the times, positive on all of [0, 1]; None for uniform times. The mean of the result
            is the same for any.
        generator: source of the noise, on the device of ``x0``; or one for each of the B samples, so that none
            depends on its batch.
        on_step: function called ``num_times`` times, for a progress bar.

    Raises:
        InputError: for less than one time.
        UserError: if the score is not finite.
    """
    if num_times < 1:
        raise InputError(f"num_times={num_times}: need at least 1")
    proposal = proposal or UniformTime(0.0)
    if offset is None:
        offset = BatchGenerator(generator).stratified(len(x0), x0.device)

    if levels is None:  # the mean of -log p(x | x0) over x, in closed form
        data = -_sum(process.expected_log_density(x0.double(), 0.0))
    else:
        pair = process.sample_pair(x0, torch.zeros_like(x0.flatten(1)[:, 0]), generator)
        data = -_log_level(process, *pair, levels)
    diffusion = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for k in range(num_times):
        t, density = proposal.quantile((k + offset) / num_times)
        t = t.to(x0.dtype)
        diffusion += _rate(score_fn, process, x0, t, generator) / density / num_times
        if on_step is not None:
            on_step()
    if not diffusion.isfinite().all():
        raise UserError("the score is not finite: try precision=fp32")
    prior = _sum(process.kl_to_prior(x0.double()))
    return ElboResult(data, diffusion, prior, num_times)


@torch.no_grad()
def time_proposal(
    score_fn: ScoreFn, process: Process, x0: Tensor, generator: Generator | Sequence[Generator] | None = None
) -> Tensor:
    """Estimate probabilities of equal intervals of t under which the diffusion term has little variance.

    The probabilities are for ``losses.PiecewiseUniform`` in ``elbo``: proportional to the root mean square, over the
    samples, of the integrand in an interval, which is optimal for independent times, mixed with a tenth of the uniform
    distribution, so that no weight exceeds ten.

    Args:
        score_fn: function score_fn(x, sigma), as for ``elbo``.
        process: diffusion process.
        x0: pilot batch of data, (B, ...).
        generator: source of the noise; the result of ``elbo`` is unbiased if it draws from another.

    Returns:
        The probabilities, float64 (INTERVALS,).
    """
    sizes = []
    for k in range(INTERVALS):
        t = torch.full_like(x0.flatten(1)[:, 0], (k + 0.5) / INTERVALS)
        sizes.append(_rate(score_fn, process, x0, t, generator).square().mean().sqrt())
    weights = torch.stack(sizes)
    return 0.9 * weights / weights.sum() + 0.1 / INTERVALS


def _rate(
    score_fn: ScoreFn, process: Process, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None
) -> Tensor:
    """Draw the integrand of the diffusion term at the times ``t``, float64 (B,)."""
    x, x0 = process.sample_pair(x0, t, generator)
    weighting = DiffusionSquared(process)
    return score_error(lambda x, sigma, _: score_fn(x, sigma), process, x0, t, x, weighting=weighting).double()


def _log_level(process: Process, x: Tensor, x0: Tensor, levels: int) -> Tensor:
    """Compute the log posterior probability of the levels of ``x0`` given ``x`` at t = 0, with equal priors, (B,)."""
    values = torch.arange(levels, dtype=torch.float64, device=x.device)[None] / (levels - 1)
    rows = max(1, LEVELS_AT_ONCE // levels)
    parts = []
    for own, true in zip(x.double().reshape(-1, 1).split(rows), x0.double().reshape(-1, 1).split(rows), strict=True):
        logs = process.log_density(own, values.expand(len(own), -1), 0.0).log_softmax(1)
        parts.append(logs.gather(1, (true * (levels - 1)).round().long()))
    return torch.cat(parts).reshape(len(x), -1).sum(1)


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)

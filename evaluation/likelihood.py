"""The log-likelihood of a model by the change of variables of its probability flow (Song et al. 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sampling.base import ScoreFn
from sampling.dopri5 import odeint
from sde import Process
from utils.errors import InputError
from utils.seeds import BatchGenerator

VECTORS_AT_ONCE = 2**17  # most elements of the vectors in one backward pass, which takes at least one vector
DIVERGENCES = ("hutchinson", "exact")


@dataclass(frozen=True)
class Likelihood:
    """The result of ``log_likelihood``.

    Attributes:
        log_prob: logarithm of the density at sigma(0), in nats, (B,).
        nfe: number of calls of the score function.
        evaluations: number of evaluations that each point took, int64 (B,).
    """

    log_prob: Tensor
    nfe: int
    evaluations: Tensor


@torch.no_grad()
def log_likelihood(
    score_fn: ScoreFn,
    process: Process,
    x: Tensor,
    divergence: str = "hutchinson",
    generator: Generator | Sequence[Generator] | None = None,
    *,
    num_probes: int = 1,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    on_step: Callable[[], object] | None = None,
) -> Likelihood:
    """Compute the density of points under the flow that the sampler ``ode`` integrates from the prior at sigma_max.

    Along the flow dy = -1/2 g^2 S dt, in unfolded coordinates, the density changes by d log p = 1/2 g^2 div S dt. The
    flow is integrated from the points at t = 0 to t = 1, where the density is the prior's; each point has its own step
    sizes.

    Args:
        score_fn: score_fn(x, sigma) with x (B, ...) in the domain and sigma (B,); differentiable in x, point by point.
        process: diffusion process.
        x: points of the domain, (B, ...).
        divergence: "exact" for the full trace, which costs as many backward passes an evaluation as a point has
            coordinates; or "hutchinson" for the mean of e^T J e over ``num_probes`` sign vectors e, one backward pass
            each, an unbiased estimate.
        generator: source of the sign vectors, on the device of ``x``; or one for each of the B points, so that none
            depends on its batch.
        num_probes: number of sign vectors of a point, which stay the same along its trajectory.
        rtol, atol: tolerances of a step, for the coordinates as in ``ProbabilityFlow``, and separately for the
            logarithm of the density, in nats.
        on_step: function called ``sampling.dopri5.REPORTS`` times, for a progress bar.

    Raises:
        InputError: for another divergence, or less than one probe.
        UserError: if the score is not finite.
    """
    if divergence not in DIVERGENCES:
        raise InputError(f"divergence={divergence}: known are {', '.join(DIVERGENCES)}")
    if num_probes < 1:
        raise InputError(f"num_probes={num_probes}: need at least 1")
    size = x[0].numel()
    if divergence == "exact":
        vectors, scale = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *x[:1].shape), 1.0
    else:
        vectors, scale = BatchGenerator(generator).signs_like(x, num_probes), 1.0 / num_probes

    def derivative(t: Tensor, state: Tensor) -> Tensor:
        """Compute d(y, log p) / dt at the times ``t`` (B,)."""
        y = state[:, :size].reshape(x.shape)
        rate = 0.5 * process.diffusion(t).square().to(x.dtype)[:, None]
        score, trace = _score_and_trace(process, score_fn, y, process.sigma(t).to(x.dtype), vectors)
        return torch.cat([-rate * score.flatten(1), rate * scale * trace[:, None]], dim=1)

    # log p at t = 0 is log p at t = 1 minus its change in between
    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    end, evaluations = odeint(derivative, start, rtol, atol, on_step, parts=(size, 1))
    log_prior = process.prior_log_prob(process.project(end[:, :size].reshape(x.shape)))
    return Likelihood(log_prior - end[:, size], int(evaluations.max()), evaluations)


def _score_and_trace(
    process: Process, score_fn: ScoreFn, y: Tensor, sigma: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the folded score S at ``y``, and the sum of v^T (dS/dy) v over the ``vectors`` (K, B or 1, ...), (B,)."""
    x = process.project(y).detach()  # the graph begins here: at a face project has no derivative, but S has
    with torch.enable_grad():
        x.requires_grad_()
        score = score_fn(x, sigma)
    trace = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for chunk in vectors.split(max(1, VECTORS_AT_ONCE // y.numel())):
        v = process.pushforward(y, chunk).expand(-1, *score.shape)
        if len(v) == 1:
            products = torch.autograd.grad(score, x, v[0], retain_graph=True)[0][None]
        else:
            (products,) = torch.autograd.grad(score, x, v, retain_graph=True, is_grads_batched=True)
        trace += (products * v).flatten(2).sum((0, 2))
    return process.pullback(y, score.detach()), trace

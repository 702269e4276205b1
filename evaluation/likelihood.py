"""The density of a model: the exact change of variables of its probability flow (Song et al. 2021) on the cube."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sampling.base import ScoreFn
from sampling.dopri5 import odeint
from sampling.folding import fold_sign
from sde import ReflectedVE, cube
from utils.errors import InputError

TOGETHER = 2**17  # numbers that one backward pass is taken through at a time, for vectors beyond the first
DIVERGENCES = ("hutchinson", "exact")


@dataclass(frozen=True)
class Likelihood:
    """What ``log_likelihood`` returns.

    Attributes:
        log_prob: logarithm of the density at sigma(0), nats, (B,).
        nfe: calls of the score function.
        evaluations: how many of them each point took, int64 (B,).
    """

    log_prob: Tensor
    nfe: int
    evaluations: Tensor


@torch.no_grad()
def log_likelihood(
    score_fn: ScoreFn,
    sde: ReflectedVE,
    x: Tensor,
    divergence: str = "hutchinson",
    generator: Generator | Sequence[Generator] | None = None,
    *,
    num_probes: int = 1,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    on_step: Callable[[], object] | None = None,
) -> Likelihood:
    """Density of points under the flow that the sampler ``ode`` integrates, from uniform noise at sigma_max.

    Along the flow dy = -1/2 g^2 S dt, in unfolded coordinates, the density changes by d log p = 1/2 g^2 div S dt. It is
    followed from the points at t = 0 to t = 1, where it is 1 everywhere, each point with step sizes of its own.

    Args:
        score_fn: score_fn(x, sigma) with x (B, ...) in the cube and sigma (B,); differentiable in x, point by point.
        sde: the process.
        x: points in [0, 1], (B, ...).
        divergence: "exact", the full trace, which costs as many backward passes an evaluation as a point has
            coordinates; or "hutchinson", the mean of e^T J e over ``num_probes`` sign vectors e, one backward pass
            each, whose result is random with the right mean.
        generator: source of the sign vectors, on the device of ``x``; or one for each of the B points, so that none
            depends on its batch.
        num_probes: sign vectors of a point, the same all along its way.
        rtol, atol: error of a step, for the coordinates as in ``ProbabilityFlow``, and for the logarithm of the density
            by itself, in nats.
        on_step: called ``sampling.dopri5.REPORTS`` times on the way, for a progress bar.

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
        vectors, scale = _signs(x, generator, num_probes), 1.0 / num_probes

    def field(done: Tensor, state: Tensor) -> Tensor:
        """d(y, log p) for a unit of the way, at the share ``done`` (B,) of it."""
        y = state[:, :size].reshape(x.shape)
        rate = 0.5 * sde.diffusion(done).square().to(x.dtype)[:, None]
        slope, trace = _score_and_trace(score_fn, y, sde.sigma(done).to(x.dtype), vectors)
        return torch.cat([-rate * slope.flatten(1), rate * scale * trace[:, None]], dim=1)

    # log p at t = 0 is that at t = 1, which is 0, less what it gains on the way
    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    end, evaluations = odeint(field, start, rtol, atol, on_step, parts=(size, 1))
    return Likelihood(-end[:, size], int(evaluations.max()), evaluations)


def _signs(x: Tensor, generator: Generator | Sequence[Generator] | None, num_probes: int) -> Tensor:
    """Vectors of -1 and 1, (num_probes, B, ...)."""

    def draw(shape: Sequence[int], g: Generator | None) -> Tensor:
        return torch.randint(2, tuple(shape), generator=g, device=x.device).to(x.dtype) * 2.0 - 1.0

    if generator is None or isinstance(generator, Generator):
        return draw((num_probes, *x.shape), generator)
    return torch.stack([draw((num_probes, *x.shape[1:]), g) for _, g in zip(x, generator, strict=True)], dim=1)


def _score_and_trace(score_fn: ScoreFn, y: Tensor, sigma: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The unfolded score S at ``y``, and the sum of v^T (dS/dy) v over the ``vectors`` (K, B or 1, ...), (B,)."""
    sign = fold_sign(y)
    x = cube.reflect(y)  # a leaf of its own: at a face the fold has no derivative, but S has
    with torch.enable_grad():
        x.requires_grad_()
        score = score_fn(x, sigma)
    trace = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for some in vectors.split(max(1, TOGETHER // y.numel())):
        v = (sign * some).expand(-1, *score.shape)
        if len(v) == 1:
            products = torch.autograd.grad(score, x, v[0], retain_graph=True)[0][None]
        else:
            (products,) = torch.autograd.grad(score, x, v, retain_graph=True, is_grads_batched=True)
        trace += (products * v).flatten(2).sum((0, 2))
    return sign * score.detach(), trace

"""Constrained denoising score matching (Lou & Ermon 2023, the CDSM loss)."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sde import ReflectedVE, heat_kernel

T_MIN = 1e-5  # times are uniform in [T_MIN, 1]


def score_matching_loss(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    sde: ReflectedVE,
    x0: Tensor,
    labels: Tensor | None = None,
    *,
    likelihood_weighting: bool = False,
    reduce_mean: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Weighted squared error of the network against the exact conditional score, one value an image.

    loss_i = lambda(t_i) R |net(x_i, sigma_i, label_i) - d/dx log p(x_i | x0_i, sigma_i)|^2, where t_i is uniform,
    x_i is drawn from the heat kernel, lambda = sigma^2, or g^2 with ``likelihood_weighting``, and R is half the
    sum over dimensions, or their mean with ``reduce_mean``. With likelihood weighting and half the sum, its
    expectation is the diffusion term of the likelihood bound.

    Args:
        net: called as net(x, sigma, labels).
        sde: the process.
        x0: images in [0, 1], (B, ...).
        labels: classes, int64 (B,), -1 for none; None for a network without classes.
        generator: source of times and noise, on the device of ``x0``.

    Returns:
        Losses, (B,).
    """
    t, x = perturb(sde, x0, generator)
    return score_error(net, sde, x0, t, x, labels, likelihood_weighting=likelihood_weighting, reduce_mean=reduce_mean)


def perturb(sde: ReflectedVE, x0: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """The random part of the loss: times t, uniform in [T_MIN, 1], (B,), and x ~ p(. | x0, sigma(t)), (B, ...)."""
    t = torch.rand(x0.shape[0], dtype=x0.dtype, device=x0.device, generator=generator)
    t = T_MIN + (1.0 - T_MIN) * t
    return t, heat_kernel.sample(x0, sde.sigma(t), generator)


def score_error(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    sde: ReflectedVE,
    x0: Tensor,
    t: Tensor,
    x: Tensor,
    labels: Tensor | None = None,
    kernel_score: Callable[[Tensor, Tensor, Tensor], Tensor] = heat_kernel.score,
    *,
    likelihood_weighting: bool = False,
    reduce_mean: bool = False,
) -> Tensor:
    """The loss of ``score_matching_loss`` for times and noisy images that ``perturb`` drew: nothing here is random.

    ``kernel_score`` computes the regression target: ``heat_kernel.score``, or what was compiled of it.
    """
    sigma = sde.sigma(t)
    target = kernel_score(x, x0, sigma)

    # The weight multiplies the error before it is squared: scores reach 1 / sigma_min^2.
    weight = sde.diffusion(t) if likelihood_weighting else sigma
    error = (net(x, sigma, labels) - target).flatten(1) * weight[:, None]
    squared = error.square()
    return squared.mean(dim=1) if reduce_mean else 0.5 * squared.sum(dim=1)

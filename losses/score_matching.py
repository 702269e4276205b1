"""Denoising score matching; with the heat kernel of the cube it is the CDSM loss of Lou & Ermon (2023)."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from losses.noise_levels import NoiseLevelSampler, UniformTime
from losses.weighting import SigmaSquared, Weighting
from sde import Process
from utils.seeds import BatchGenerator

UNIFORM_TIME, SIGMA_SQUARED = UniformTime(), SigmaSquared()  # the published choice


def score_matching_loss(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    process: Process,
    x0: Tensor,
    labels: Tensor | None = None,
    *,
    noise_levels: NoiseLevelSampler = UNIFORM_TIME,
    weighting: Weighting = SIGMA_SQUARED,
    reduce_mean: bool = False,
    stratified: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Compute the weighted squared error of a score network against the conditional score, one value a sample.

    loss_i = weight(sigma_i) R |net(x_i, sigma_i, label_i) - d/dx log p(x_i | x0_i, sigma_i)|^2, where sigma_i is that
    of a time from ``noise_levels``, x_i comes from the process, and R is half the sum over dimensions, or their mean
    with ``reduce_mean``. With uniform times, the weight g^2 and half the sum, its expectation is the diffusion term of
    the variational bound; so it is with times drawn for importance sampling, since the loss is then divided by their
    density relative to uniform times.

    Args:
        net: score network, called as net(x, sigma, labels).
        process: diffusion process.
        x0: data in [0, 1], (B, ...).
        labels: classes, int64 (B,), -1 for none, or conditions, float32 (B, K), NaN for none; None for a network
            without both.
        noise_levels: distribution of the times.
        weighting: weight of the squared error by noise level.
        reduce_mean: whether to take the mean over dimensions, instead of half the sum.
        stratified: whether to draw one time in each of B intervals of equal probability.
        generator: source of times and noise, on the device of ``x0``.

    Returns:
        Losses, (B,).
    """
    x0, t, x, importance = perturb(process, x0, noise_levels, generator, stratified)
    losses = score_error(net, process, x0, t, x, labels, weighting=weighting, reduce_mean=reduce_mean)
    return losses if importance is None else losses * importance


def perturb(
    process: Process,
    x0: Tensor,
    noise_levels: NoiseLevelSampler = UNIFORM_TIME,
    generator: Generator | None = None,
    stratified: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Draw the random part of the loss.

    Args:
        process: diffusion process.
        x0: data in [0, 1], (B, ...).
        noise_levels: distribution of the times.
        generator: source of times and noise, on the device of ``x0``.
        stratified: whether to draw one time in each of B intervals of equal probability, in random order.

    Returns:
        ``x0`` arranged as x_t, see ``Process.sample_pair``, (B, ...); times t, (B,); x_t given ``x0``, (B, ...); and
        the importance weights of the times, (B,), which are their density under ``UniformTime`` over that under
        ``noise_levels``, or None if that does no importance sampling.
    """
    if stratified:
        u = BatchGenerator(generator).stratified(len(x0), x0.device)
        t, density = (values.to(x0.dtype) for values in noise_levels.quantile(u))
    else:
        t, density = noise_levels.draw(len(x0), generator, x0.device, x0.dtype)
    importance = UNIFORM_TIME.quantile(torch.zeros_like(t))[1] / density if noise_levels.importance_sampling else None
    x, x0 = process.sample_pair(x0, t, generator)
    return x0, t, x, importance


def score_error(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    process: Process,
    x0: Tensor,
    t: Tensor,
    x: Tensor,
    labels: Tensor | None = None,
    conditional_score: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    *,
    weighting: Weighting = SIGMA_SQUARED,
    reduce_mean: bool = False,
) -> Tensor:
    """Compute the loss of ``score_matching_loss`` for times and noisy data that ``perturb`` drew, without randomness.

    Args:
        net: score network, called as net(x, sigma, labels).
        process: diffusion process.
        x0: data in [0, 1], arranged as ``x``, (B, ...).
        t: times, (B,).
        x: samples of the process at these times, (B, ...).
        labels: classes, int64 (B,), or conditions, float32 (B, K); None for a network without both.
        conditional_score: a compiled ``process.conditional_score``; None for that method itself.
        weighting: weight of the squared error by noise level.
        reduce_mean: whether to take the mean over dimensions, instead of half the sum.

    Returns:
        Losses, (B,).
    """
    sigma = process.sigma(t)
    target = (conditional_score or process.conditional_score)(x, x0, t)

    # The root of the weight multiplies the error before it is squared: scores reach 1 / sigma_min^2.
    error = (net(x, sigma, labels) - target).flatten(1) * weighting.root(sigma)[:, None]
    squared = error.square()
    return squared.mean(dim=1) if reduce_mean else 0.5 * squared.sum(dim=1)

"""Noise levels of few steps, and one step of a solver between them: functions of tensors and numbers alone.

This file imports torch only: its text becomes part of exported pipelines (models/io/diffusers_dir.py).
"""

import math

import torch
from torch import Tensor

RHO = 7.0  # spacing of Karras et al. (2022)


def karras_levels(top: float, bottom: float, steps: int, rho: float = RHO) -> list[float]:
    """Compute the levels top = sigma_0 > ... > sigma_steps = bottom of Karras et al. (2022, eq. 5).

    Args:
        top, bottom: first and last level.
        steps: number of steps between them.
        rho: spacing: the levels are equidistant in sigma^(1 / rho).
    """
    exponents = torch.linspace(top ** (1.0 / rho), bottom ** (1.0 / rho), steps + 1, dtype=torch.float64)
    return [top, *exponents[1:-1].pow(rho).tolist(), bottom]  # the ends as they are: powers round


def multistep_step(
    x: Tensor,
    target: Tensor,
    sigma: float,
    following: float,
    before: tuple[Tensor, float] | None = None,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Carry ``x`` from one noise level to the next by DPM-Solver++(2M) or its stochastic form (Lu et al. 2022).

    Args:
        x: points of the domain at the level ``sigma``, (B, ...).
        target: denoised estimate x + sigma^2 score, (B, ...).
        sigma, following: noise levels, the second one lower.
        before: ``target`` and ``sigma`` of the step before; None for the first step.
        eta: noise in units of that of the reversed process.
        noise: standard normal numbers, (B, ...); needed if ``eta`` is not 0.

    Returns:
        Points at the level ``following``, which may lie outside of the domain, (B, ...).
    """
    h, ahead = math.log(sigma / following), target
    if before is not None:
        target_before, sigma_before = before
        ahead = target + 0.5 * h / math.log(sigma_before / sigma) * (target - target_before)
    y = torch.lerp(ahead, x, math.exp(-(1.0 + eta) * h))
    if eta and noise is not None:
        y = y + following * math.sqrt(-math.expm1(-2.0 * eta * h)) * noise
    return y

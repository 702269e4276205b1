"""The plain variance-exploding process (Song et al. 2021), without bounds: the baseline of the reflected one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from sde.base import ElementwiseProcess, NoiseLevel
from utils.seeds import BatchGenerator


@dataclass(frozen=True)
class VE(ElementwiseProcess):
    """x_t = x0 + sigma(t) z with z a standard normal vector, t in [0, 1]; an implementation of ``Process``.

    The prior is N(0, sigma_max^2), from which x_1 given x0 has the divergence |x0|^2 / (2 sigma_max^2).

    Args:
        sigma_min: noise level at t = 0, in units of the range of the data.
        sigma_max: noise level at t = 1, in units of the range of the data.
        num_scales: default number of steps of the predictor-corrector sampler.

    Raises:
        InputError: unless 0 < sigma_min < sigma_max < infinity and num_scales is a positive integer.
    """

    bounded: ClassVar[bool] = False
    prior_name: ClassVar[str] = "normal"

    sigma_min: NoiseLevel = 0.01
    sigma_max: NoiseLevel = 50.0

    @property
    def prior_sigma(self) -> float:
        """Return sigma_max: the marginal keeps growing up to there."""
        return self.sigma_max

    def sample(self, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
        """Draw x_t = x0 + sigma(t) z given ``x0`` (B, ...) at times ``t`` (B,)."""
        return x0 + self._sigma_of(t, x0) * BatchGenerator(generator).randn_like(x0)

    def conditional_score(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Return (x0 - x) / sigma(t)^2, elementwise, for ``x``, ``x0`` (B, ...) and ``t`` (B,)."""
        return (x0 - x) / self._sigma_of(t, x).square()

    def log_density(self, x: Tensor, x0: Tensor, t: Tensor | float) -> Tensor:
        """Return log N(x; x0, sigma(t)^2), elementwise, for points that broadcast; ``t`` (B,) or a number."""
        sigma = self._sigma_of(t, x)
        return -0.5 * ((x - x0) / sigma).square() - torch.log(sigma * math.sqrt(2.0 * math.pi))

    def expected_log_density(self, x0: Tensor, t: float) -> Tensor:
        """Return E[log p(x_t | x0)], minus the entropy of N(0, sigma(t)^2), in the shape of ``x0``."""
        log_sigma = math.log(self.sigma_min) + t * self.log_ratio
        return torch.full_like(x0, -0.5 * math.log(2.0 * math.pi * math.e) - log_sigma)

    def kl_to_prior(self, x0: Tensor) -> Tensor:
        """Return the divergence of N(x0, sigma_max^2) from N(0, sigma_max^2), elementwise, in nats."""
        return 0.5 * (x0 / self.sigma_max).square()

    def prior_sample(
        self,
        shape: tuple[int, ...],
        generator: Generator | Sequence[Generator] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw from N(0, sigma_max^2), of ``shape`` (B, ...), from one generator or from one for each."""
        return self.sigma_max * BatchGenerator(generator).randn(shape, device, dtype)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density of N(0, sigma_max^2) at ``x`` (B, ...), (B,)."""
        return self.log_density(x, torch.zeros_like(x), 1.0).flatten(1).sum(1)

    def project(self, y: Tensor) -> Tensor:
        """Return ``y``: every point is in the domain."""
        return y

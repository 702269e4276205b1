"""The reflected variance-exploding process and its noise schedule."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from utils.errors import InputError


@dataclass(frozen=True)
class ReflectedVE:
    """dx = g(t) dw reflected at the faces of the cube, t in [0, 1] (Lou & Ermon 2023, the reflected SDE).

    sigma(t) = sigma_min (sigma_max / sigma_min)^t is the standard deviation that the free motion would have.

    Args:
        sigma_min, sigma_max: noise at t = 0 and t = 1, in units of the cube's side.
        num_scales: steps of a sampler that is not told otherwise.

    Raises:
        InputError: unless 0 < sigma_min < sigma_max < infinity and num_scales is a positive integer.
    """

    sigma_min: float = 0.01
    sigma_max: float = 5.0
    num_scales: int = 1000

    def __post_init__(self) -> None:
        numbers = all(isinstance(sigma, int | float) for sigma in (self.sigma_min, self.sigma_max))
        if not numbers or not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                f"sde.sigma_min={self.sigma_min} and sde.sigma_max={self.sigma_max}: need numbers, "
                "0 < sigma_min < sigma_max"
            )
        if not isinstance(self.num_scales, int) or self.num_scales < 1:
            raise InputError(f"sde.num_scales={self.num_scales}: need a positive integer")

    @property
    def log_ratio(self) -> float:
        """ln(sigma_max / sigma_min)."""
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at times ``t``; same shape."""
        return self.sigma_min * torch.exp(t * self.log_ratio)

    def diffusion(self, t: Tensor) -> Tensor:
        """Diffusion coefficient g(t) = sigma(t) sqrt(2 ln(sigma_max / sigma_min)), so that g^2 = d sigma^2 / dt."""
        return self.sigma(t) * math.sqrt(2.0 * self.log_ratio)

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is ``sigma``; inverse of ``sigma(t)``."""
        return torch.log(sigma / self.sigma_min) / self.log_ratio

    def prior_sample(
        self,
        shape: tuple[int, ...],
        generator: Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform noise on the cube, the limit of the process (distance exp(-pi^2 sigma_max^2 / 2) at t = 1)."""
        return torch.rand(shape, generator=generator, device=device, dtype=dtype)

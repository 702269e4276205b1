"""The reflected variance-exploding process (Lou & Ermon 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from sde import cube, heat_kernel
from sde.base import ElementwiseProcess, NoiseLevel
from utils.seeds import BatchGenerator

# Above this noise level the density differs from the uniform one by less than 2 exp(-pi^2 1.5^2 / 2) = 3e-5 in each
# coordinate: the exact score is 0 to within that, and what a network returns there is its error.
UNIFORM_FROM = 1.5


@dataclass(frozen=True)
class ReflectedVE(ElementwiseProcess):
    """dx = g(t) dw reflected at the faces of the cube [0, 1]^D, t in [0, 1]; an implementation of ``Process``.

    sigma(t) is the standard deviation that the free motion would have. The transition density is the heat kernel, and
    the prior is uniform on the cube, from which x_1 differs by exp(-pi^2 sigma_max^2 / 2).

    Args:
        sigma_min: noise level at t = 0, in units of the cube's side.
        sigma_max: noise level at t = 1, in units of the cube's side.
        num_scales: default number of steps of the predictor-corrector sampler.

    Raises:
        InputError: unless 0 < sigma_min < sigma_max < infinity and num_scales is a positive integer.
    """

    bounded: ClassVar[bool] = True
    prior_name: ClassVar[str] = "uniform"

    sigma_min: NoiseLevel = 0.01
    sigma_max: NoiseLevel = 5.0

    @property
    def prior_sigma(self) -> float:
        """Return the noise level above which x_t is uniform, or sigma_max if that does not lie above sigma_min."""
        return self.sigma_max if self.sigma_min >= UNIFORM_FROM else min(self.sigma_max, UNIFORM_FROM)

    def sample(self, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
        """Draw x_t given ``x0`` (B, ...) at times ``t`` (B,): a Gaussian step folded back into the cube."""
        return heat_kernel.sample(x0, self.sigma(t), generator)

    def conditional_score(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Return d/dx log p(x_t = x | x0), elementwise, for ``x``, ``x0`` (B, ...) in the cube and ``t`` (B,)."""
        return heat_kernel.score(x, x0, self.sigma(t))

    def log_density(self, x: Tensor, x0: Tensor, t: Tensor | float) -> Tensor:
        """Return log p(x_t = x | x0), elementwise, for points of the cube that broadcast; ``t`` (B,) or a number."""
        return heat_kernel.log_density(x, x0, self.sigma(torch.as_tensor(t, dtype=x.dtype, device=x.device)))

    def expected_log_density(self, x0: Tensor, t: float) -> Tensor:
        """Return E[log p(x_t | x0)] over x_t given ``x0``, elementwise."""
        return heat_kernel.kl_to_uniform(x0, self.sigma(torch.tensor(t, dtype=torch.float64)).item())

    def kl_to_prior(self, x0: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence of x_1 given ``x0`` from the uniform law, elementwise, in nats."""
        return heat_kernel.kl_to_uniform(x0, self.sigma_max)

    def prior_sample(
        self,
        shape: tuple[int, ...],
        generator: Generator | Sequence[Generator] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw uniform noise on the cube, of ``shape`` (B, ...), from one generator or from one for each."""
        return BatchGenerator(generator).rand(shape, device, dtype)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the uniform density at ``x`` (B, ...): zeros, (B,)."""
        return x.new_zeros(len(x))

    def project(self, y: Tensor) -> Tensor:
        """Return the point of the cube into which reflections at its faces fold ``y``, elementwise."""
        return cube.reflect(y)

    def fold_sign(self, y: Tensor) -> Tensor:
        """Return -1 where ``cube.reflect`` mirrors a coordinate of ``y``, 1 elsewhere, in its shape."""
        return torch.where(torch.remainder(y, 2.0) > 1.0, -1.0, 1.0).to(y.dtype)

"""Exactly solvable targets: finitely many points, whose perturbed score and density are known in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sde import heat_kernel


@dataclass(frozen=True)
class FinitePoints:
    """The distribution that puts mass ``weights`` (K,) on ``points`` (K, D), perturbed by the heat kernel."""

    points: Tensor
    weights: Tensor

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Compute log sum_k w_k p(x | point_k, sigma), for x (B, D); (B,)."""
        return self._logs(x, sigma).logsumexp(1)

    def _logs(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Compute log w_k p(x | point_k, sigma), (B, K)."""
        kernels = heat_kernel.log_density(x[:, None], self.points.to(x.dtype)[None], sigma)
        return kernels.sum(-1) + self.weights.to(x.dtype).log()

    def sample(self, n: int, sigma: float, generator: torch.Generator) -> Tensor:
        """Draw points perturbed by the kernel, (n, D)."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return heat_kernel.sample(self.points[chosen], sigma, generator)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Compute d/dx log sum_k w_k p(x | point_k, sigma), for x (B, D) and sigma (B,); x must be in the cube."""
        assert x.min() >= 0.0 and x.max() <= 1.0, "evaluated outside the cube"
        scores = heat_kernel.score(x[:, None], self.points.to(x.dtype)[None], sigma)
        return (self._logs(x, sigma).softmax(1)[..., None] * scores).sum(1)

    def shares(self, x: Tensor) -> Tensor:
        """Compute the share of samples (B, D) that are nearest to each point, (K,)."""
        return torch.cdist(x, self.points).argmin(1).bincount(minlength=len(self.points)) / len(x)

    def standard_errors(self, x: Tensor) -> Tensor:
        """Compute the deviation of the shares of ``x`` from the weights, in binomial standard errors, (K,)."""
        return (self.shares(x) - self.weights) / (self.weights * (1 - self.weights) / len(x)).sqrt()

    def rms_distance(self, x: Tensor) -> float:
        """Compute the root mean square distance of samples (B, D) from the nearest point, per coordinate."""
        nearest = self.points[torch.cdist(x, self.points).argmin(1)]
        return (x - nearest).square().mean().sqrt().item()


WEIGHTS = torch.tensor([0.10, 0.15, 0.20, 0.25, 0.30])

# two on faces, one in a corner
FIVE_POINTS = FinitePoints(torch.tensor([[0.0, 0.0], [1.0, 0.3], [0.5, 0.5], [0.2, 1.0], [0.8, 0.8]]), WEIGHTS)
# on faces, edges and corners only
BOUNDARY = FinitePoints(
    torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.4, 0.0, 1.0], [0.0, 0.7, 0.6], [1.0, 0.0, 0.5]]), WEIGHTS
)
# images of 8x8 in colour, a third of their values on the faces
IMAGES = FinitePoints(
    torch.rand(5, 192, generator=torch.Generator().manual_seed(0)).mul(1.5).sub(0.25).clamp(0.0, 1.0), WEIGHTS
)
TARGETS = {"points on faces and corners, 3-D": BOUNDARY, "2-D": FIVE_POINTS, "192-D": IMAGES}


@dataclass(frozen=True)
class GaussianMixture:
    """The mixture of N(point_k, std^2) with ``weights`` (K,), perturbed by Gaussian noise; ``std`` 0 for points."""

    points: Tensor
    weights: Tensor
    std: float = 0.0

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Compute the log density at noise level ``sigma`` of x (B, D), (B,)."""
        return self._logs(x, torch.as_tensor(sigma, dtype=x.dtype)).logsumexp(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Compute its gradient, for x (B, D) and sigma (B,)."""
        mean = self._logs(x, sigma).softmax(1) @ self.points.to(x.dtype)
        return (mean - x) / (sigma.square() + self.std**2).reshape(-1, 1)

    def _logs(self, x: Tensor, sigma: Tensor) -> Tensor:
        std = (sigma.square() + self.std**2).sqrt().reshape(-1, 1, 1)
        kernels = torch.distributions.Normal(self.points.to(x.dtype), std).log_prob(x[:, None])
        return kernels.sum(-1) + self.weights.to(x.dtype).log()

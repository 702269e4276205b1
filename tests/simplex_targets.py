"""Exactly solvable targets for the process on the ordered cube, perturbed by it."""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.special import ndtr

from datasets.simplex import from_ordered, to_ordered
from sde import ReflectedSimplex, heat_kernel
from tests.targets import WEIGHTS


@cache
def _subsets(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Return, for each subset of ``size`` of n columns, its columns, and the number of the subset without each."""
    smaller = {subset: i for i, subset in enumerate(itertools.combinations(range(n), size - 1))}
    subsets = list(itertools.combinations(range(n), size))
    without = [[smaller[subset[:k] + subset[k + 1 :]] for k in range(size)] for subset in subsets]
    return torch.tensor(subsets), torch.tensor(without)


def log_permanent(logs: Tensor) -> Tensor:
    """Compute the log permanent of exp(``logs``), (..., n, n), over subsets of columns, without cancellation.

    ``logs`` is that of a kernel of total positivity at two ordered sets of points: the identity is then the arrangement
    of the largest product, and with these potentials of rows and columns no entry exceeds 1, its value on the diagonal.
    """
    n = logs.shape[-1]
    diagonal = logs.diagonal(dim1=-2, dim2=-1)
    columns = torch.cat([torch.zeros_like(diagonal[..., :1]), logs.diagonal(1, -2, -1) - diagonal[..., :-1]], -1)
    columns = columns.cumsum(-1).detach()
    rows = diagonal.detach() - columns
    entries = (logs - rows[..., None] - columns[..., None, :]).exp()
    sums = torch.ones_like(entries[..., 0, :1])
    for i in range(n):
        chosen, without = _subsets(n, i + 1)
        sums = (sums[..., without] * entries[..., i, :][..., chosen]).sum(-1)
    return sums[..., 0].log() + diagonal.detach().sum(-1)


@dataclass(frozen=True)
class OrderedPoints:
    """The distribution that puts mass ``weights`` (K,) on ordered ``points`` (K, n)."""

    points: Tensor
    weights: Tensor

    def _log_kernels(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Compute log k(x_i | point_kj, sigma), (B, K, n, n)."""
        return heat_kernel.log_density(x[:, None, :, None], self.points.to(x.dtype)[None, :, None], sigma)

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Compute the log density of ordered ``x`` (B, n), (B,)."""
        return (log_permanent(self._log_kernels(x, sigma)) + self.weights.to(x.dtype).log()).logsumexp(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Compute its gradient; ``x`` must be ordered and in [0, 1]."""
        assert_ordered(x)
        with torch.enable_grad():
            logs = self._log_kernels(x, sigma)
            logs = logs if x.requires_grad else logs.requires_grad_()
            total = (log_permanent(logs) + self.weights.to(x.dtype).log()).logsumexp(1).sum()
            (shares,) = torch.autograd.grad(total, logs, create_graph=x.requires_grad)
        scores = heat_kernel.score(x[:, None, :, None], self.points.to(x.dtype)[None, :, None], sigma)
        return (shares * scores).sum((1, 3))

    def sample(self, n: int, process: ReflectedSimplex, generator: torch.Generator) -> Tensor:
        """Draw points perturbed to sigma_min of the process, (n, D)."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return process.sample(self.points[chosen], torch.zeros(n), generator)

    def standard_errors(self, x: Tensor) -> Tensor:
        """Compute the deviation of the shares of ``x`` nearest to each point from the weights, in standard errors."""
        shares = torch.cdist(x, self.points.to(x.dtype)).argmin(1).bincount(minlength=len(self.points)) / len(x)
        return (shares - self.weights) / (self.weights * (1 - self.weights) / len(x)).sqrt()


def compositions(parts: int) -> OrderedPoints:
    """Return five compositions far from each other, a third of their parts exactly 0; the first has a single part."""
    seed = {3: 37, 4: 4, 5: 16, 10: 19}[parts]
    drawn = (torch.rand(5, parts, generator=torch.Generator().manual_seed(seed)) - 1 / 3).clamp(min=0)
    drawn[0] = torch.eye(parts)[parts // 2]
    target = OrderedPoints(to_ordered(drawn), WEIGHTS)
    assert (drawn.sum(1) > 0).all() and (drawn[1:] == 0).any() and torch.pdist(target.points).min() > 0.15
    return target


REACH, NODES = 7.0, 28  # of a panel of the quadrature, in units of sigma, and the nodes on it
SWITCH, COSINES = 0.15, 16  # the noise level from which the series is used, and its terms


@dataclass(frozen=True)
class DirichletMixture:
    """The mixture of Dirichlet(1 + e_k) of ``parts`` parts, with ``weights`` {k: weight}, k from 1, as ordered points.

    Its density is (n + 1)! sum_k w_k gap_k(x). Perturbed, it is the mean of that over the process started at x, because
    the kernel is symmetric; and the mean of the k-th gap of sorted independent X_i is the integral over z in [0, 1] of
    the probability that k - 1 of them are below z. The integral is computed by Gauss-Legendre rules at both ends of the
    gap, and there is 1 between.
    """

    parts: int
    weights: dict[int, float]

    @property
    def mixture(self) -> Tensor:
        """Return the weights, (K,)."""
        return torch.tensor(list(self.weights.values()))

    def sample_parts(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw compositions, float64 (n, parts), by gamma variables of shape 1 or 2."""
        draws = -torch.rand(n, self.parts + 1, dtype=torch.float64, generator=generator).log()
        component = torch.multinomial(self.mixture, n, replacement=True, generator=generator)
        gammas = draws[:, :-1].clone()
        gammas[torch.arange(n), torch.tensor(list(self.weights))[component] - 1] += draws[:, -1]
        return gammas / gammas.sum(1, keepdim=True)

    def sample(self, n: int, process: ReflectedSimplex, generator: torch.Generator) -> Tensor:
        """Draw ordered points perturbed to sigma_min of the process, float64 (n, parts - 1)."""
        return process.sample(to_ordered(self.sample_parts(n, generator)), torch.zeros(n), generator)

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Compute the log density of ordered ``x`` (B, n), (B,)."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        density = x.new_zeros(len(x))
        for near, distribution in ((sigma < SWITCH, _by_images), (sigma >= SWITCH, _by_series)):
            rows = near.nonzero()[:, 0]
            if len(rows):
                gaps = self._expected_gaps(x[rows], sigma[rows], distribution)
                density = density.index_put((rows,), gaps @ self.mixture.to(x.dtype))
        return density.log() + math.lgamma(self.parts + 1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Compute its gradient; ``x`` must be ordered and in [0, 1]."""
        assert_ordered(x)
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(self.log_density(at, sigma).sum(), at, create_graph=x.requires_grad)[0]

    def _expected_gaps(self, x: Tensor, sigma: Tensor, distribution) -> Tensor:
        ends = torch.cat([torch.zeros_like(x[:, :1]), x.detach(), torch.ones_like(x[:, :1])], 1)
        nodes, weights = (torch.from_numpy(v).to(x.dtype) for v in np.polynomial.legendre.leggauss(NODES))
        gaps = []
        for k in self.weights:
            low, high, reach = ends[:, k - 1], ends[:, k], REACH * sigma
            inner = torch.minimum(reach, 0.5 * (high - low))
            z, w = [0.5 * (low + high)[:, None]], [(high - low - 2 * inner)[:, None]]
            for a, b in ((low - reach).clamp(min=0), low + inner), (high - inner, (high + reach).clamp(max=1)):
                z.append(0.5 * (a + b)[:, None] + 0.5 * (b - a)[:, None] * nodes)
                w.append(0.5 * (b - a)[:, None] * weights)
            probability = _count_probability(distribution(torch.cat(z, 1), x, sigma), k - 1)
            gaps.append((torch.cat(w, 1) * probability).sum(1))
        return torch.stack(gaps, 1)


def _by_images(z: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Compute P(X_i <= z) of the reflected kernel from x_i for sigma below ``SWITCH``, (B, Z, n)."""
    z, x, sigma = z[:, :, None], x[:, None], sigma[:, None, None]
    return ndtr((z - x) / sigma) - ndtr(-(z + x) / sigma) + ndtr((z + x - 2.0) / sigma)


def _by_series(z: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Compute the same by the cosine series, for sigma from ``SWITCH`` on."""
    k = math.pi * torch.arange(1, COSINES + 1, dtype=x.dtype)
    factors = 2.0 * torch.exp(-0.5 * (k * sigma[:, None]).square()) / k
    sines = torch.sin(z[:, :, None] * k) * factors[:, None]
    return z[:, :, None] + sines @ torch.cos(x[:, None] * k[:, None])


def _count_probability(p: Tensor, count: int) -> Tensor:
    """Compute the probability that ``count`` of n independent events of probabilities ``p`` (..., n) happen."""
    n = p.shape[-1]
    if count > n - count:
        p, count = 1.0 - p, n - count
    if not count:
        return (1.0 - p).prod(-1)
    counts = torch.nn.functional.pad(torch.ones_like(p[..., :1]), (0, count))
    for own in p.split(1, -1):
        counts = counts * (1.0 - own) + torch.nn.functional.pad(counts[..., :-1], (1, 0)) * own
    return counts[..., -1]


def assert_ordered(x: Tensor) -> None:
    """Assert that points are of the domain."""
    assert x.min() >= 0.0 and x.max() <= 1.0 and (from_ordered(x) >= 0).all(), "evaluated outside the domain"

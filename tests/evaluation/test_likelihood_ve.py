"""Densities and bounds of the plain VE process on targets where they are known exactly."""

import math

import pytest
import torch
from torch import Generator
from torch.distributions import Normal, kl_divergence

from evaluation import elbo, log_likelihood
from sde import VE
from tests.targets import WEIGHTS, GaussianMixture

SDE = VE(0.05, 20.0)
GAUSSIAN = GaussianMixture(torch.full((1, 3), 0.4), torch.ones(1), std=0.2)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def marginal(sigma):
    """Return the perturbed distribution of a coordinate of ``GAUSSIAN``."""
    return Normal(torch.tensor(0.4, dtype=torch.float64), math.sqrt(0.2**2 + sigma**2))


def test_the_flow_of_a_gaussian_is_a_linear_map_and_its_density_follows():
    """The prior is not the perturbed distribution at sigma_max: the density is that of the map from the prior."""
    x = 0.4 + 0.3 * torch.randn(50, 3, dtype=torch.float64, generator=seeded())
    out = log_likelihood(GAUSSIAN.score, SDE, x, "exact", rtol=1e-8, atol=1e-8)
    start, end = marginal(0.05), marginal(20.0)
    there = 0.4 + (x - 0.4) * end.stddev / start.stddev
    prior = Normal(torch.zeros(1, dtype=torch.float64), 20.0)
    exact = start.log_prob(x) - end.log_prob(there) + prior.log_prob(there)
    torch.testing.assert_close(out.log_prob, exact.sum(1), atol=1e-5, rtol=0)


def test_the_density_of_finitely_many_points():
    target = GaussianMixture(torch.rand(5, 4, generator=seeded(4)), WEIGHTS)
    sde = VE(0.05, 500.0)  # so that the prior is the perturbed law to within 1e-3
    x0 = target.points[torch.multinomial(WEIGHTS, 100, replacement=True, generator=seeded())].double()
    x = sde.sample(x0, torch.zeros(100), seeded(1))
    exact = target.log_density(x, 0.05)
    out = log_likelihood(target.score, sde, x, "exact")
    assert (out.log_prob - exact).abs().max() < 0.01 and exact.std() > 0.5
    many = x[:1].repeat(300, 1)
    estimates = log_likelihood(target.score, sde, many, generator=seeded(2), rtol=1e-4, atol=1e-4).log_prob
    assert estimates.mean().item() == pytest.approx(exact[0].item(), abs=0.02 + 4 * estimates.std().item() / 300**0.5)


@pytest.mark.parametrize("levels", [None, 17])
def test_the_bound_has_its_mean_in_closed_form(levels):
    """For a Gaussian, every divergence in the bound is between normal distributions."""
    n, x0 = 8000, torch.tensor([[0.25, 0.5, 0.75]], dtype=torch.float64)
    bound = elbo(GAUSSIAN.score, SDE, x0.repeat(n, 1), levels, num_times=20, generator=seeded())
    at_end, prior = Normal(x0, 20.0), Normal(torch.zeros_like(x0), 20.0)
    assert bound.prior[0].item() == pytest.approx(kl_divergence(at_end, prior).sum().item())
    # The expected logarithm of the perturbed density, less what the prior lacks, and less the expected log kernel.
    perturbed = marginal(0.05).log_prob(x0) - 0.5 * 0.05**2 / (0.2**2 + 0.05**2)
    kernel = -Normal(x0, 0.05).entropy()
    diffusion = (kernel - perturbed - kl_divergence(at_end, marginal(20.0))).sum().item()
    error = bound.diffusion.std().item() / math.sqrt(n)
    assert error < 0.03
    assert bound.diffusion.mean().item() == pytest.approx(diffusion, abs=4 * error)
    if levels is None:
        torch.testing.assert_close(bound.data, -kernel.sum().expand(n))
    else:
        grid = torch.arange(17, dtype=torch.float64) / 16
        z = torch.randn(100_000, 1, dtype=torch.float64, generator=seeded(3))
        logs = Normal(grid, 0.05).log_prob(0.5 + 0.05 * z).log_softmax(1)[:, 8]  # levels far from the ends are alike
        assert bound.data.mean().item() == pytest.approx(-3 * logs.mean().item(), abs=0.02)


def test_the_bound_on_the_probability_of_points_is_tight():
    target = GaussianMixture(torch.randint(17, (5, 16), generator=seeded(3)) / 16.0, WEIGHTS)
    sde, n = VE(0.002, 50.0), 2000
    bound = elbo(target.score, sde, target.points.repeat_interleave(n, 0), 17, num_times=16, generator=seeded(5))
    gap = bound.log_prob.reshape(5, n) - WEIGHTS.double().log()[:, None]
    errors = gap.std(1) / math.sqrt(n)
    assert errors.max() < 0.06
    assert (gap.mean(1).abs() < 0.05 + 3 * errors).all()

"""Distributions of the noise level, and the weightings, against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

from losses import DiffusionSquared, LogNormal, PiecewiseUniform, SigmaSquared, UniformTime, score_matching_loss
from losses.noise_levels import create_noise_levels
from sde import VE, ReflectedVE
from utils.errors import InputError
from utils.seeds import image_generators

SDE = ReflectedVE(0.01, 5.0)
SAMPLERS = {
    "uniform": UniformTime(),
    "log_normal": LogNormal(SDE),
    "log_normal, cut": LogNormal(SDE, log_sigma_mean=1.0, log_sigma_std=0.7),
    "piecewise": PiecewiseUniform(torch.tensor([0.1, 0.6, 0.05, 0.25])),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_density_is_the_derivative_of_the_distribution_function(name):
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t, density = SAMPLERS[name].quantile(u)
    assert (t.diff() > 0).all() and t.min() >= 0 and t.max() <= 1
    middle = 0.5 * (density[1:] + density[:-1])
    off = (middle * t.diff() * 100_000 - 1).abs()
    assert off.quantile(0.999) < 1e-3


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_are_quantiles_of_uniform_numbers(name):
    sampler = SAMPLERS[name]
    t, density = sampler.draw(64, torch.Generator().manual_seed(0))
    u = torch.rand(64, generator=torch.Generator().manual_seed(0))
    expected = sampler.quantile(u)
    assert torch.equal(t, expected[0]) and torch.equal(density, expected[1])
    each, _ = sampler.draw(5, image_generators(0, range(5)))
    assert torch.equal(sampler.draw(2, image_generators(0, range(3, 5)))[0], each[3:])


@pytest.mark.parametrize("sde", [SDE, VE(0.002, 80.0)])
def test_log_sigma_is_a_truncated_normal(sde):
    t, _ = LogNormal(sde, -1.2, 1.2).draw(20_000, torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = (np.log([sde.sigma_min, sde.sigma_max]) + 1.2) / 1.2
    assert kstest(sde.sigma(t).log().numpy(), truncnorm(*ends, loc=-1.2, scale=1.2).cdf).pvalue > 0.001


def test_published_times():
    t, density = UniformTime().quantile(torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert t.tolist() == [1e-5, 0.500005] and density.tolist() == [1 / (1 - 1e-5)] * 2
    assert UniformTime(0.0).quantile(torch.tensor([0.1]))[0].item() == torch.tensor(0.1).item()


def test_weights():
    sigma = SDE.sigma(torch.rand(10_000, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(SigmaSquared().root(sigma), sigma) and torch.equal(SigmaSquared().weight(sigma), sigma.square())
    g = SDE.diffusion_at(sigma)
    assert torch.equal(DiffusionSquared(SDE).root(sigma), g)
    torch.testing.assert_close(g.square(), 2 * math.log(500) * sigma.square())


def test_the_loss_takes_its_times_from_the_sampler():
    seen = []

    def net(x, sigma, labels):
        seen.append(sigma)
        return torch.zeros_like(x)

    sampler, x0 = LogNormal(SDE, 0.5, 0.1), torch.rand(200, 3)
    score_matching_loss(net, SDE, x0, noise_levels=sampler, generator=torch.Generator().manual_seed(0))
    t, _ = sampler.draw(200, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0], SDE.sigma(t))
    assert seen[0].log().mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_score_of_a_plain_ve_process_has_no_loss():
    process, x0 = VE(0.01, 50.0), torch.rand(8, 3)
    loss = score_matching_loss(
        lambda x, sigma, _: (x0 - x) / sigma[:, None].square(), process, x0, generator=torch.Generator().manual_seed(0)
    )
    assert loss.max() < 1e-9


def test_noise_levels_by_name():
    options = {"noise_levels": "log_normal", "log_sigma_mean": 0.3, "log_sigma_std": 0.5}
    assert create_noise_levels(options, SDE) == LogNormal(SDE, 0.3, 0.5)
    assert create_noise_levels({**options, "noise_levels": "uniform"}, SDE) == UniformTime()
    for wrong, message in (
        ({"noise_levels": "lognormal"}, "did you mean log_normal"),
        ({"log_sigma_std": 0}, r"training\.log_sigma_std=0: need a number, more than 0"),
        ({"log_sigma_mean": 50, "log_sigma_std": 1}, r"log_sigma_mean=50 .* put no noise level between"),
    ):
        with pytest.raises(InputError, match=message):
            create_noise_levels({**options, **wrong}, SDE)

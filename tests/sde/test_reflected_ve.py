import math

import pytest
import torch

from sde import ReflectedVE
from utils.errors import InputError


def test_schedule_and_its_inverse():
    sde = ReflectedVE(sigma_min=0.01, sigma_max=5.0)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    sigma = sde.sigma(t)
    assert sigma[0].item() == 0.01
    assert sigma[-1].item() == pytest.approx(5.0, rel=1e-14)
    assert sigma[500].item() == pytest.approx(math.sqrt(0.05), rel=1e-14)
    assert torch.allclose(sde.time(sigma), t, atol=1e-14)


def test_diffusion_is_the_growth_of_the_variance():
    sde = ReflectedVE(sigma_min=1e-4, sigma_max=5.0)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    h = 1e-6
    growth = (sde.sigma(t + h).square() - sde.sigma(t - h).square()) / (2 * h)
    assert torch.allclose(sde.diffusion(t).square(), growth, rtol=1e-8)
    assert sde.diffusion(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(5 * math.sqrt(2 * math.log(5e4)))


def test_prior_is_uniform_on_the_cube():
    x = ReflectedVE().prior_sample((100_000,), torch.Generator().manual_seed(0))
    assert x.min() >= 0 and x.max() <= 1
    assert abs(x.mean().item() - 0.5) < 4 / math.sqrt(12 * 100_000)
    assert abs(x.var().item() - 1 / 12) < 4 * math.sqrt(1 / 180 / 100_000)


@pytest.mark.parametrize(
    "sigmas", [(0.0, 5.0), (5.0, 0.01), (1.0, 1.0), (-1.0, 5.0), (0.01, float("inf")), ("small", 5.0), (0.01, None)]
)
def test_bad_ranges_are_named(sigmas):
    with pytest.raises(InputError, match=r"sde\.sigma_m(in|ax)"):
        ReflectedVE(*sigmas)


@pytest.mark.parametrize("num_scales", [0, 2.5, "many"])
def test_a_bad_number_of_steps_is_named(num_scales):
    with pytest.raises(InputError, match=r"sde\.num_scales"):
        ReflectedVE(num_scales=num_scales)

"""The plain VE process, against the normal distribution of torch."""

import pytest
import torch
from torch import Generator
from torch.distributions import Normal, kl_divergence

from sde import VE, ReflectedVE, create_process
from utils.errors import InputError
from utils.seeds import image_generators

PROCESS = VE(0.05, 20.0)
X0 = torch.tensor([[0.0, 0.3], [1.0, 0.8], [0.5, 0.5]], dtype=torch.float64)
T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
KERNEL = Normal(X0, (0.05 * 400.0**T)[:, None])


def test_kernel_and_its_score():
    x = (X0 + torch.randn(3, 2, dtype=torch.float64, generator=Generator().manual_seed(0))).requires_grad_()
    torch.testing.assert_close(PROCESS.log_density(x, X0, T), KERNEL.log_prob(x))
    (slope,) = torch.autograd.grad(KERNEL.log_prob(x).sum(), x)
    torch.testing.assert_close(PROCESS.conditional_score(x, X0, T), slope)
    for k, t in enumerate(T.tolist()):
        torch.testing.assert_close(PROCESS.log_density(x[k : k + 1], X0[k : k + 1], t), KERNEL.log_prob(x)[k : k + 1])


def test_samples_are_of_the_kernel():
    n = 100_000
    x = PROCESS.sample(X0.repeat(n, 1), T.repeat(n), Generator().manual_seed(0)).reshape(n, 3, 2)
    standard = KERNEL.stddev / n**0.5
    assert ((x.mean(0) - X0).abs() < 4 * standard).all()
    torch.testing.assert_close(x.std(0), KERNEL.stddev.expand(3, 2), rtol=0.01, atol=0)
    assert x.min() < 0 and x.max() > 1


def test_expected_density_and_divergence():
    for k, t in enumerate(T.tolist()):
        torch.testing.assert_close(PROCESS.expected_log_density(X0, t)[k], -KERNEL.entropy().expand(3, 2)[k])
    at_end = Normal(X0, 20.0)
    torch.testing.assert_close(PROCESS.kl_to_prior(X0), kl_divergence(at_end, Normal(torch.zeros_like(X0), 20.0)))


def test_prior():
    x = PROCESS.prior_sample((50_000, 2), Generator().manual_seed(0))
    assert x.std().item() == pytest.approx(20.0, rel=0.01) and abs(x.mean().item()) < 4 * 20 / 100_000**0.5
    torch.testing.assert_close(PROCESS.prior_log_prob(x), Normal(0.0, 20.0).log_prob(x).sum(1))
    together = PROCESS.prior_sample((4, 3), image_generators(0, range(4)))
    assert torch.equal(PROCESS.prior_sample((2, 3), image_generators(0, range(1, 3))), together[1:3])


def test_nothing_is_folded_and_the_flow_starts_at_sigma_max():
    y = torch.tensor([[-3.0, 1.5]])
    assert torch.equal(PROCESS.project(y), y)
    assert torch.equal(PROCESS.pushforward(y, y), y) and torch.equal(PROCESS.pullback(y, y), y)
    assert PROCESS.prior_sigma == 20.0 and not PROCESS.bounded


def test_processes_by_name():
    sigmas = {"sigma_min": 0.02, "sigma_max": 30, "num_scales": 7}
    assert create_process({"name": "ve", **sigmas}) == VE(0.02, 30, 7)
    for names in ({"name": "reflected_ve"}, {"name": "vesde"}, {}):  # published configurations, and those without one
        assert create_process({**names, **sigmas}) == ReflectedVE(0.02, 30, 7)
    with pytest.raises(InputError, match=r"sde\.name=subvp: known are reflected_ve, ve"):
        create_process({"name": "subvp", **sigmas})
    with pytest.raises(InputError, match=r"sde\.sigma_min=0"):
        create_process({"name": "ve", "sigma_min": 0})

"""Distributions of the noise level, and the weightings, against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

from losses import (
    DiffusionSquared,
    LogNormal,
    LogVariance,
    LossAdaptive,
    LossHistory,
    PiecewiseUniform,
    SigmaSquared,
    UniformTime,
    create_objective,
    score_matching_loss,
)
from losses.loss_history import MEMORY, WARM_UP
from losses.noise_levels import create_noise_levels, uniform_below_prior
from losses.score_matching import perturb
from losses.weighting import create_weighting
from sde import VE, ReflectedVE
from utils.errors import InputError
from utils.seeds import image_generators

SDE = ReflectedVE(0.01, 5.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def size(t):
    """Return a loss of two orders of magnitude over t."""
    return torch.exp(-5.0 * t) + 0.01


def history_of(function, n=20_000):
    """Return the history of a loss that is a function of t, from one time in each of ``n`` intervals."""
    history = LossHistory()
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    history.update(t, function(t))
    return history


SAMPLERS = {
    "uniform": UniformTime(),
    "capped": uniform_below_prior(SDE),
    "loss_adaptive": LossAdaptive(history_of(size)),
    "loss_adaptive, warming up": LossAdaptive(LossHistory()),
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_stratified_times_are_one_in_each_interval_in_random_order(name):
    n, sampler = 96, SAMPLERS[name]
    _, t, _, _ = perturb(SDE, torch.rand(n, 2, dtype=torch.float64), sampler, seeded(), stratified=True)
    edges = sampler.quantile(torch.arange(n, dtype=torch.float64) / n)[0]
    rank = torch.searchsorted(edges, t, right=True) - 1
    assert sorted(rank.tolist()) == list(range(n))
    for share in rank.split(n // 4):  # what a process gets has all noise levels
        assert len((share // (n // 4)).unique()) == 4 and (share.diff() > 0).float().mean() < 0.8


def test_capped_times_end_where_the_process_is_uniform():
    t, density = uniform_below_prior(SDE).quantile(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert t[0] == 1e-5 and SDE.sigma(t[1]).item() == pytest.approx(1.5, rel=1e-12)
    assert (density * (t[1] - t[0])).tolist() == pytest.approx([1.0, 1.0])
    assert uniform_below_prior(VE(0.01, 50.0)) == UniformTime() == uniform_below_prior(ReflectedVE(2.0, 5.0))
    with pytest.raises(
        InputError, match=r"capped leaves no noise level between sde\.sigma_min=1\.49999 and that of the"
    ):
        create_noise_levels({"noise_levels": "capped"}, ReflectedVE(1.49999, 5.0))


def test_adaptive_times_follow_the_root_mean_square_of_the_loss():
    """In the interval k of t the density is 0.9 of the share of the root mean square there, and 0.1."""
    history = LossHistory()
    t = (torch.arange(32_000, dtype=torch.float64) + 0.5) / 32_000
    losses = size(t) * torch.where(torch.rand(len(t), generator=seeded()) < 0.5, 2.0, 0.5)
    history.update(t, losses)
    rms = losses.square().reshape(32, -1).mean(1).sqrt()
    expected = 0.9 * rms / rms.sum() + 0.1 / 32
    torch.testing.assert_close(LossAdaptive(history).probabilities(), expected)
    drawn, density = LossAdaptive(history).draw(200_000, seeded(), dtype=torch.float64)
    counts = torch.bincount(history.interval(drawn), minlength=32)
    spread = (200_000 * expected * (1 - expected)).sqrt()
    assert ((counts - 200_000 * expected) / spread).abs().max() < 4
    torch.testing.assert_close(density * (1 - 1e-5), 32 * expected[history.interval((drawn - 1e-5) / (1 - 1e-5))])


def test_the_loss_of_adaptive_times_has_the_expectation_of_uniform_times():
    """Exactly, for a function of t; and within three standard errors, with a smaller one, for the loss of a network."""
    u = (torch.arange(320_000, dtype=torch.float64) + 0.5) / 320_000
    t, density = SAMPLERS["loss_adaptive"].quantile(u)
    even, uniform_density = UniformTime().quantile(u)
    weights = uniform_density / density
    assert weights.max() < 10 and weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    for function in (size, torch.sin, lambda t: t.square()):
        assert (weights * function(t)).mean().item() == pytest.approx(function(even).mean().item(), abs=1e-5)
        assert function(t).mean() != pytest.approx(function(even).mean().item(), abs=1e-2)

    def network(x, sigma, labels):
        return torch.zeros_like(x)

    x0 = torch.rand(20_000, 2, generator=seeded(1))
    plain = score_matching_loss(network, SDE, x0, generator=seeded(2))
    _, times, _, _ = perturb(SDE, x0, generator=seeded(2))
    history = LossHistory()
    history.update(times, plain)
    adaptive = score_matching_loss(network, SDE, x0, noise_levels=LossAdaptive(history), generator=seeded(3))
    error = (plain.var() / 20_000 + adaptive.var() / 20_000).sqrt()
    assert abs(plain.mean() - adaptive.mean()) < 3 * error and adaptive.var() < 0.9 * plain.var()


def test_times_are_uniform_until_every_interval_has_samples():
    history = LossHistory()
    t = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    for _ in range(WARM_UP):
        assert (LossAdaptive(history).probabilities() == 1 / 32).all() and not history.ready.any()
        history.update(t, size(t))
    assert history.ready.all() and LossAdaptive(history).probabilities()[0] > 3 / 32


def test_moments_are_means_of_the_last_samples():
    history, t = LossHistory(), torch.tensor([0.0, 0.5, 0.5, 1.0])
    history.update(t, torch.tensor([1.0, 2.0, 4.0, 7.0]))
    history.update(t[:1], torch.tensor([2.0]))
    assert history.count[[0, 16, 31]].tolist() == [2, 2, 1] and history.count.sum() == 5
    assert history.mean[[0, 16, 31]].tolist() == [1.5, 3, 7]
    assert history.mean_square[[0, 16, 31]].tolist() == [2.5, 10, 49]
    for _ in range(20):  # an interval without samples keeps its moments
        history.update(torch.zeros(MEMORY // 4), torch.full((MEMORY // 4,), 9.0))
    assert history.mean[0].item() == pytest.approx(9, rel=0.01) and history.mean[16] == 3
    history.update(torch.zeros(3 * MEMORY), torch.ones(3 * MEMORY))  # more at once than it remembers
    assert history.mean[0].item() == pytest.approx(1) and history.count.max() == MEMORY


def test_moments_of_processes_are_those_of_the_whole_batch():
    t, losses = torch.rand(100, generator=seeded()), torch.rand(100, generator=seeded(1))
    whole = LossHistory()
    whole.update(t, losses)
    sums = []
    LossHistory().update(t[60:], losses[60:], lambda values: sums.append(values) or values)
    shared = LossHistory()
    shared.update(t[:60], losses[:60], lambda values: values + sums[0])
    for name, values in whole.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], values, rtol=1e-12, atol=0)
    restored = LossHistory()
    restored.load_state_dict(whole.state_dict())
    assert all(torch.equal(values, restored.state_dict()[name]) for name, values in whole.state_dict().items())
    with pytest.raises(ValueError, match=r"has \(16,\) intervals, not 32"):
        restored.load_state_dict(LossHistory(intervals=16).state_dict())


def test_the_log_variance_weight_is_the_minimiser_of_edm2():
    """Where it has no bound, sigma^2 / weight is proportional to exp(u), u the minimiser of exp(-u) E[L] + u."""
    history = history_of(lambda t: torch.exp(-6.0 * t))
    weighting = LogVariance(SDE, history)
    sigma = SDE.sigma((torch.arange(32, dtype=torch.float64) + 0.5) / 32)
    factors = weighting.weight(sigma) / sigma.square()
    mean = history.mean.mean()
    below = history.mean > mean / 10
    assert 15 < below.sum() < 30 and (factors[~below] == 10).all()
    u = torch.linspace(-10, 3, 13_001, dtype=torch.float64)
    minimiser = u[(torch.exp(-u) * history.mean[:, None] + u).argmin(1)]
    torch.testing.assert_close((mean / factors).log()[below], minimiser[below], rtol=0, atol=1e-3)
    torch.testing.assert_close((factors * history.mean)[below], mean.expand(int(below.sum())))
    torch.testing.assert_close(weighting.root(sigma).square(), weighting.weight(sigma))
    assert weighting.fixed == SigmaSquared() and DiffusionSquared(SDE).fixed == DiffusionSquared(SDE)


def test_the_log_variance_weight_without_samples_is_sigma_squared():
    history, sigma = LossHistory(), SDE.sigma(torch.rand(100, generator=seeded()))
    weighting = LogVariance(SDE, history)
    assert torch.equal(weighting.weight(sigma), sigma.square())
    history.update(torch.full((WARM_UP,), 0.1), torch.full((WARM_UP,), 3.0))
    history.update(torch.full((WARM_UP,), 0.9), torch.full((WARM_UP,), 1.0))
    found = (
        weighting.weight(SDE.sigma(torch.tensor([0.1, 0.5, 0.9]))) / SDE.sigma(torch.tensor([0.1, 0.5, 0.9])).square()
    )
    assert found.tolist() == pytest.approx([2 / 3, 1, 2])
    history.mean.zero_()
    assert torch.equal(weighting.weight(sigma), sigma.square())


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
    assert create_noise_levels({**options, "noise_levels": "capped"}, SDE) == uniform_below_prior(SDE)
    for wrong, message in (
        ({"noise_levels": "lognormal"}, "did you mean log_normal"),
        ({"log_sigma_std": 0}, r"training\.log_sigma_std=0: need a number, more than 0"),
        ({"log_sigma_mean": 50, "log_sigma_std": 1}, r"log_sigma_mean=50 .* put no noise level between"),
    ):
        with pytest.raises(InputError, match=message):
            create_noise_levels({**options, **wrong}, SDE)


def test_at_most_one_part_follows_the_loss():
    options = {"noise_levels": "uniform", "weighting": None, "likelihood_weighting": False}
    assert create_objective(options, SDE) == (UniformTime(), SigmaSquared(), None)
    noise_levels, weighting, history = create_objective({**options, "noise_levels": "loss_adaptive"}, SDE)
    assert noise_levels.history is history and weighting == SigmaSquared()
    noise_levels, weighting, history = create_objective({**options, "weighting": "log_variance"}, SDE)
    assert weighting.history is history and noise_levels == UniformTime()
    with pytest.raises(
        InputError, match=r"^training\.noise_levels=loss_adaptive and training\.weighting=log_variance both"
    ):
        create_objective({**options, "noise_levels": "loss_adaptive", "weighting": "log_variance"}, SDE)
    with pytest.raises(
        InputError, match=r"weighting=log_variance and training\.likelihood_weighting=True.*choose one$"
    ):
        create_weighting({"weighting": "log_variance", "likelihood_weighting": True}, SDE)

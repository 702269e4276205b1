"""Densities and bounds on targets where they are known exactly; -rP prints the figures of docs/results.md."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Generator, nn

from benchmarks import density
from evaluation import elbo, log_likelihood
from evaluation.elbo import INTERVALS, time_proposal
from evaluation.likelihood import _score_and_trace
from losses import PiecewiseUniform
from models import create_model
from sampling.folding import folded_score
from sde import ReflectedVE, heat_kernel
from tests.conftest import composed
from tests.targets import FIVE_POINTS, WEIGHTS, FinitePoints
from utils.errors import InputError, UserError

SDE = ReflectedVE(0.01, 5.0)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def points(dimensions):
    """Five points, a third of whose values are on the faces."""
    return FinitePoints(torch.rand(5, dimensions, generator=seeded(dimensions)).mul(1.5).sub(0.25).clamp(0, 1), WEIGHTS)


@pytest.mark.parametrize(
    ("target", "n"), [(FIVE_POINTS, 200), (points(4), 200), (points(48), 20)], ids=["2-D", "4-D", "48-D"]
)
def test_the_exact_trace_gives_the_density(target, n):
    x = target.sample(n, SDE.sigma_min, seeded())
    out = log_likelihood(target.score, SDE, x, divergence="exact")
    errors = (out.log_prob - target.log_density(x.double(), SDE.sigma_min)).abs()
    print(f"| {x.shape[1]} | {out.nfe} | {errors.median():.1e} | {errors.quantile(0.95):.1e} | {errors.max():.1e} |")
    assert errors.quantile(0.95) < 0.005
    assert out.log_prob.shape == (n,) and out.log_prob.std() > 0.5


def test_images_of_several_axes_are_points_of_as_many_dimensions():
    target = points(4)
    x = target.sample(6, SDE.sigma_min, seeded())
    flat = log_likelihood(target.score, SDE, x, "exact").log_prob
    shaped = log_likelihood(
        lambda x, sigma: target.score(x.flatten(1), sigma).reshape(x.shape), SDE, x.reshape(6, 1, 2, 2), "exact"
    ).log_prob
    torch.testing.assert_close(shaped, flat, atol=1e-4, rtol=0)


@pytest.mark.parametrize("probes", [1, 4])
def test_hutchinsons_estimate_has_the_right_mean(probes):
    """The points lie between two components, where the Jacobian is not diagonal and single estimates vary."""
    target = FinitePoints(torch.tensor([[0.2, 0.3, 0.4, 0.7], [0.3, 0.5, 0.2, 0.9]]), torch.tensor([0.4, 0.6]))
    sde = ReflectedVE(0.1, 5.0)
    x = target.sample(2, sde.sigma_min, seeded()).double()
    exact = log_likelihood(target.score, sde, x, "exact", rtol=1e-5, atol=1e-5).log_prob
    draws = 800 // probes
    many = x.repeat_interleave(draws, 0)
    out = log_likelihood(target.score, sde, many, generator=seeded(1), num_probes=probes, rtol=1e-4, atol=1e-4)
    errors = out.log_prob.reshape(2, draws) - exact[:, None]
    standard = errors.std(1) / math.sqrt(draws)
    print(f"| {probes} | {(errors.mean(1) / standard).abs().max():.1f} | {errors.std(1).max():.3f} |")
    assert (errors.mean(1).abs() < 4 * standard).all()
    assert errors.std() > 0.02, "all sign vectors give the same: nothing is estimated"


@pytest.mark.parametrize("network", ["adm", "ddpmpp", "vdm"])
def test_the_trace_of_a_network(network):
    """Compare with the Jacobian: vectorised backward passes work through attention and group normalisation."""
    narrow = {
        "adm": ["model.model_channels=8", "model.channel_mult=[1]", "model.num_blocks=1", "model.attn_resolutions=[4]"],
        "ddpmpp": ["model.nf=8", "model.ch_mult=[1]", "model.num_res_blocks=1", "model.attn_resolutions=[4]"],
        "vdm": ["model.channels=8", "model.num_blocks=1"],
    }[network]
    cfg = composed("data=fake", "data.image_size=4", "data.num_channels=1", f"model={network}", *narrow)
    torch.manual_seed(0)
    net = create_model(cfg.model, cfg.data, cfg.sde).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    y, sigma = 3 * torch.rand(3, 1, 4, 4) - 1, torch.full((3,), 0.3)

    def unfolded(y):
        return folded_score(SDE, net, y[None], sigma[:1])[0]

    score, trace = _score_and_trace(SDE, net, y, sigma, torch.eye(16).reshape(16, 1, 1, 4, 4))
    jacobians = [torch.autograd.functional.jacobian(unfolded, image).reshape(16, 16) for image in y]
    torch.testing.assert_close(score, folded_score(SDE, net, y, sigma).detach())
    torch.testing.assert_close(trace, torch.stack([j.trace() for j in jacobians]), rtol=1e-3, atol=1e-3)
    assert trace.abs().min() > 1e-3


def test_more_probes_reduce_the_variance():
    target = points(4)
    sde = ReflectedVE(0.1, 5.0)
    x = target.sample(1, sde.sigma_min, seeded()).repeat(300, 1)
    scatter = [
        log_likelihood(target.score, sde, x, generator=seeded(2), num_probes=k, rtol=1e-3, atol=1e-3).log_prob.std()
        for k in (1, 4)
    ]
    assert 1.6 < scatter[0] / scatter[1] < 2.5


def test_a_likelihood_does_not_depend_on_its_batch():
    x = FIVE_POINTS.sample(5, SDE.sigma_min, seeded())

    def of(rows):
        generators = [seeded(10 + i) for i in range(5)][rows]
        return log_likelihood(FIVE_POINTS.score, SDE, x[rows], generator=generators).log_prob

    torch.testing.assert_close(torch.cat([of(slice(0, 1)), of(slice(1, 5))]), of(slice(0, 5)), atol=1e-5, rtol=1e-5)


def test_bad_options_are_refused():
    x = torch.rand(2, 2)
    for options, message in [
        ({"divergence": "excat"}, "divergence=excat: known are"),
        ({"num_probes": 0}, "num_probes=0"),
    ]:
        with pytest.raises(InputError, match=message):
            log_likelihood(FIVE_POINTS.score, SDE, x, **options)
    with pytest.raises(InputError, match="num_times=0"):
        elbo(FIVE_POINTS.score, SDE, x, None, num_times=0)
    for measure in (log_likelihood, lambda *arguments: elbo(*arguments, None)):
        with pytest.raises(UserError, match="not finite"):
            measure(lambda x, sigma: x * math.nan, SDE, x)


def waves(x):
    """Functions of points in the square that are even about each face, so that a network of them is too."""
    return torch.cos(torch.pi * x[..., None] * torch.arange(1, 9)).flatten(1)


@pytest.mark.parametrize("data", density.DATA)
@pytest.mark.parametrize("parametrization", ["output", "kernel", "kernel_width"])
def test_the_density_of_a_trained_model_integrates_to_one(parametrization, data, monkeypatch):
    """A score whose normal component vanishes at the faces makes the flow a bijection of the square."""
    monkeypatch.setattr(density, "STEPS", 600)
    monkeypatch.setattr(density, "PROCESS", ReflectedVE(0.04, 2.0))
    monkeypatch.setattr(density, "GRID", 96)
    _, integral, mean, largest = density.measure(parametrization, data, seed=0)
    print(f"| {data} | {parametrization} | {integral:.4f} | {mean:.0f} | {largest} |")
    if parametrization == "output":  # see docs/method.md
        assert not 0.95 < integral < 1.05
    else:
        assert integral == pytest.approx(1.0, abs=0.005) and largest < 200


@pytest.mark.parametrize("sigma", [0.01, 0.2, 0.4, 1.0])
def test_the_divergence_of_the_kernel_from_uniform(sigma):
    for start in (0.0, 0.013, 0.5, 0.9):
        x0 = torch.tensor([start], dtype=torch.float64)

        def integrand(x, x0=x0):
            log_p = heat_kernel.log_density(torch.tensor([x], dtype=torch.float64), x0, sigma).item()
            return math.exp(log_p) * log_p

        edges = sorted({min(1.0, max(0.0, start + k * sigma)) for k in range(-8, 9)})
        exact = sum(quad(integrand, a, b, epsabs=1e-13)[0] for a, b in pairwise(edges))
        assert heat_kernel.kl_to_uniform(x0, sigma).item() == pytest.approx(exact, abs=1e-11)


@pytest.mark.parametrize("importance", [False, True])
def test_the_bound_is_tight_for_the_exact_score(importance):
    """Images of 16 pixels and 17 levels with known probabilities."""
    target = FinitePoints(torch.randint(17, (5, 16), generator=seeded(3)) / 16.0, WEIGHTS)
    sde, n = ReflectedVE(0.002, 5.0), 6000
    x0 = target.points.repeat_interleave(n, 0)
    proposal = None
    if importance:
        proposal = PiecewiseUniform(time_proposal(target.score, sde, target.points.repeat(20, 1), seeded(4)))
    bound = elbo(target.score, sde, x0, 17, num_times=16, proposal=proposal, generator=seeded(5))
    gap = (bound.log_prob.reshape(5, n) - WEIGHTS.double().log()[:, None]).double()
    errors = gap.std(1) / math.sqrt(n)
    print(f"| {importance} | {gap.mean(1).abs().max():.3f} | {errors.max():.3f} |")
    assert errors.max() < 0.035
    assert (gap.mean(1).abs() < 0.05 + 3 * errors).all()
    assert bound.nfe == 16
    assert bound.data.abs().max() < 1e-6 and bound.prior.abs().max() < 1e-6


def test_importance_sampling_lowers_the_variance():
    target = FinitePoints(torch.randint(17, (5, 16), generator=seeded(3)) / 16.0, WEIGHTS)
    sde, x0 = ReflectedVE(0.0001, 5.0), target.points.repeat(100, 1)
    proposal = time_proposal(target.score, sde, x0, seeded(1))
    uniform, weighted = (
        elbo(target.score, sde, x0, 17, num_times=4, proposal=p, generator=seeded(2)).log_prob.reshape(100, 5).std(0)
        for p in (None, PiecewiseUniform(proposal))
    )
    assert (weighted < 0.8 * uniform).all()
    assert proposal.sum() == pytest.approx(1.0) and proposal.min() >= 0.099 / INTERVALS


def test_the_data_term_is_the_posterior_of_the_level():
    """Compare with an explicit sum over levels, at a sigma_min large enough that levels overlap."""
    sde, levels = ReflectedVE(0.05, 5.0), 17
    x0 = torch.tensor([[0.0, 0.5, 1.0]]).repeat(4000, 1)
    bound = elbo(lambda x, sigma: torch.zeros_like(x), sde, x0, levels, num_times=1, generator=seeded())

    def mean_log_posterior(value):
        grid = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
        values = torch.arange(levels, dtype=torch.float64)[None] / (levels - 1)
        densities = heat_kernel.log_density(grid, values.expand(4001, -1), 0.05).exp()
        k = round(value * (levels - 1))
        return np.trapezoid((densities[:, k] * (densities[:, k] / densities.sum(1)).log()).numpy(), dx=1 / 4000)

    exact = -sum(mean_log_posterior(value) for value in (0.0, 0.5, 1.0))
    error = bound.data.std().item() / math.sqrt(4000)
    assert exact > 1
    assert bound.data.mean().item() == pytest.approx(exact, abs=4 * error)


def test_the_prior_term_is_computed():
    sde = ReflectedVE(0.01, 0.3)
    x0 = torch.tensor([[0.0, 0.5]])
    bound = elbo(lambda x, sigma: torch.zeros_like(x), sde, x0, None, generator=seeded())
    assert bound.prior.item() == pytest.approx(heat_kernel.kl_to_uniform(x0.double(), 0.3).sum().item())
    assert bound.prior.item() > 0.1


def test_the_bound_on_the_density_is_tight_for_the_uniform_one():
    """Score and log density are 0: the diffusion term cancels the entropy at sigma_min."""
    x0 = torch.rand(4000, 3, generator=seeded())
    bound = elbo(lambda x, sigma: torch.zeros_like(x), SDE, x0, None, num_times=10, generator=seeded(1))
    error = bound.log_prob.std().item() / math.sqrt(4000)
    assert bound.diffusion.mean() > 5
    assert error < 0.1
    assert bound.log_prob.mean().item() == pytest.approx(0.0, abs=4 * error)


def test_a_bound_does_not_depend_on_its_batch():
    x0 = FIVE_POINTS.points

    def of(rows):
        generators = [seeded(10 + i) for i in range(5)][rows]
        return elbo(FIVE_POINTS.score, SDE, x0[rows], 17, generator=generators).log_prob

    torch.testing.assert_close(torch.cat([of(slice(0, 2)), of(slice(2, 5))]), of(slice(0, 5)), atol=1e-5, rtol=1e-5)


def test_times_have_the_distribution_of_the_proposal():
    proposal = torch.tensor([0.1, 0.6, 0.05, 0.25])
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    t, density = PiecewiseUniform(proposal).quantile(u)
    shares = torch.histc(t, 4, 0, 1) / 10_000
    torch.testing.assert_close(shares, proposal.double(), atol=2e-4, rtol=0)
    torch.testing.assert_close(density, 4 * proposal.double()[(4 * t).long().clamp(max=3)], atol=1e-6, rtol=1e-6)
    assert (1 / density).mean().item() == pytest.approx(1.0, abs=2e-3)
    assert (t.diff() > 0).all()

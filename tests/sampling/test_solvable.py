"""Every sampler on targets whose score is known exactly; -rP prints the figures of docs/results.md."""

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_simpson, solve_ivp

from sampling import Heun, Multistep, PredictorCorrector, ProbabilityFlow, UniPC
from sampling.ode import EXACT_TOLERANCE
from sde import ReflectedVE, heat_kernel
from tests.targets import FIVE_POINTS, TARGETS

SDE = ReflectedVE(0.01, 5.0)
SAMPLERS = {
    "pc, 400": PredictorCorrector(SDE, steps=400),
    "pc with langevin, 200": PredictorCorrector(SDE, steps=200, corrector="langevin", snr=0.1),
    "pc, ancestral, 100": PredictorCorrector(SDE, steps=100, predictor="ancestral"),
    "ode": ProbabilityFlow(SDE),
    "heun, 20": Heun(SDE, steps=20),
    "multistep, 30": Multistep(SDE, steps=30),
    "multistep with noise, 60": Multistep(SDE, steps=60, eta=1.0),
    "unipc, 30": UniPC(SDE, steps=30),
}


def start(target, dtype=torch.float32):
    n, dimensions = 5000 if target.points.shape[1] < 100 else 200, target.points.shape[1]
    return SDE.prior_sample((n, dimensions), torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("method", SAMPLERS)
def test_component_shares(method, kind):
    """The target's score asserts that it is never evaluated outside the cube."""
    target, calls = TARGETS[kind], []

    def score_fn(x, sigma):
        calls.append(sigma)
        return target.score(x, sigma)

    out = SAMPLERS[method](score_fn, start(target), torch.Generator().manual_seed(1))
    errors, deviation = target.standard_errors(out.samples).abs().max().item(), target.rms_distance(out.samples)
    print(f"| {kind} | {method} | {out.nfe} | {errors:.1f} | {deviation:.4f} |")
    assert errors < 4
    assert out.samples.min() >= 0 and out.samples.max() <= 1
    assert out.nfe == len(calls)
    # What is left is the noise of sigma_min; an Euler step of variance v from sigma leaves v (1 + v / sigma^2) behind.
    growth = 1.5 if method.startswith("pc, 400") or "langevin" in method else 1.0
    assert deviation == pytest.approx(0.01, rel=0.05 * growth)


@pytest.mark.slow(25)
@pytest.mark.parametrize("kind", TARGETS)
def test_the_flow_does_not_move_with_a_tighter_tolerance(kind):
    target = TARGETS[kind]
    x_init = start(target)
    default = ProbabilityFlow(SDE)
    tighter = ProbabilityFlow(SDE, rtol=EXACT_TOLERANCE / 10, atol=EXACT_TOLERANCE / 10)
    moved = (default(target.score, x_init).samples - tighter(target.score, x_init).samples).abs().max().item()
    print(f"| {kind} | {moved:.1e} |")
    assert moved < 1e-3


def one_point(point, sigma_max):
    """Return the score and the distribution function of the perturbed density of one point in one dimension."""
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)[None]

    def distribution(x, sigma):
        density = heat_kernel.log_density(grid, torch.full_like(grid, point), sigma).exp()[0]
        return np.interp(x.flatten(), grid[0], cumulative_simpson(density.numpy(), dx=5e-6, initial=0.0))

    return lambda x, sigma: heat_kernel.score(x, torch.full_like(x, point), sigma), distribution


def test_the_flow_solves_the_equation_to_its_tolerance():
    """For one point in one dimension the flow preserves the distribution function, so its end is known exactly."""
    sde, x_init = ReflectedVE(0.01, 0.2), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)[:, None]
    score_fn, distribution = one_point(0.3, 0.2)
    end = ProbabilityFlow(sde, 1e-9, 1e-9)(score_fn, x_init).samples
    np.testing.assert_allclose(distribution(end, 0.01), distribution(x_init, 0.2), atol=1e-6)


@pytest.mark.parametrize("method", [Heun, Multistep])
def test_few_steps_are_of_second_order(method):
    sde, x_init = ReflectedVE(0.05, 1.0), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)[:, None]
    score_fn, distribution = one_point(0.3, 1.0)
    exact = distribution(x_init, 1.0)
    errors = [
        np.abs(distribution(method(sde, steps)(score_fn, x_init).samples, 0.05) - exact).max() for steps in (40, 80)
    ]
    assert errors[1] < 2e-3
    assert 3 < errors[0] / errors[1] < 6


def test_multistep_is_exact_for_a_point_far_from_the_faces():
    score_fn, _ = one_point(0.5, 0.05)
    x_init = torch.linspace(0.4, 0.6, 5, dtype=torch.float64)[:, None]
    end = Multistep(ReflectedVE(0.01, 0.05), steps=1)(score_fn, x_init).samples
    np.testing.assert_allclose(end, 0.5 + (x_init - 0.5) / 5, atol=1e-12)


@pytest.mark.parametrize(("predictor", "deviation"), [("ancestral", 0.0100), ("euler_maruyama", 0.0220)])
@pytest.mark.parametrize("point", [0.0, 0.5, 1.0])
def test_ancestral_steps_are_exact_for_a_point(predictor, deviation, point):
    """Take two steps from a noise of 0.05, also on a face, where Euler steps leave 2.2 times the noise."""
    sde, generator = ReflectedVE(0.01, 0.05), torch.Generator().manual_seed(0)
    x0 = torch.full((20_000, 1), point)
    score_fn, _ = one_point(point, 0.05)
    x_init = heat_kernel.sample(x0, 0.05, generator)
    sampler = PredictorCorrector(sde, steps=2, predictor=predictor)
    x = sampler(score_fn, x_init, generator).samples
    assert (x - x0).square().mean().sqrt().item() == pytest.approx(deviation, rel=0.03)


def test_clipping_is_not_the_reflected_process():
    sampler = PredictorCorrector(SDE, steps=100, boundary="clip")
    out = sampler(FIVE_POINTS.score, start(FIVE_POINTS), torch.Generator().manual_seed(1))
    assert FIVE_POINTS.standard_errors(out.samples).abs().max() > 4


def test_the_mollified_flow_is_the_published_one():
    """Compare with scipy's solver on the published drift, written out here."""
    x_init = start(FIVE_POINTS, torch.float64)[:20]
    ours = ProbabilityFlow(SDE, 1e-8, 1e-8, moll=200, side_eps=0.01)(FIVE_POINTS.score, x_init).samples

    def drift(t, flat):
        x = torch.from_numpy(flat).reshape(20, 2)
        sigma = torch.full((20,), 0.01 * 500**t, dtype=torch.float64)
        bump = torch.exp((4 - 1 / (0.25 - (0.5 - x) ** 2)) / 200) * ((x > 0) & (x < 1))  # a trial step may go too far
        score = FIVE_POINTS.score(x.clamp(0, 1), sigma)
        return (-(sigma[:, None] ** 2) * np.log(500) * score * bump).nan_to_num().flatten().numpy()

    published = solve_ivp(drift, (1.0, 0.0), (0.98 * x_init + 0.01).flatten().numpy(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours.flatten(), published.y[:, -1], atol=1e-5)
    plain = ProbabilityFlow(SDE, 1e-8, 1e-8)(FIVE_POINTS.score, 0.98 * x_init + 0.01).samples
    assert (ours - plain).abs().max() > 1e-3

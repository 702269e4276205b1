import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.memory import PeakMemory
from sde import heat_kernel

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "heat_kernel.npz")
# Bounds in units of 1 (of 1/sigma for scores), relative where the value exceeds 1.
BOUNDS = {torch.float32: {"score": 1e-6, "log_density": 1e-6}, torch.float64: {"score": 1e-14, "log_density": 1e-14}}


def scaled_error(value, reference):
    error = (np.abs(value - reference) / np.maximum(1.0, np.abs(reference))).max()
    print(f"largest error {error:.1e}")  # shown by pytest -rP
    return error


def columns(dtype):
    return (torch.tensor(GOLDEN[key], dtype=dtype) for key in ("x", "x0", "sigma"))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_score_against_the_golden_table(dtype):
    score = heat_kernel.score(*columns(dtype)).double().numpy()
    sigma = GOLDEN["sigma"]
    assert len(sigma) == 765
    assert scaled_error(score * sigma, GOLDEN["score"] * sigma) < BOUNDS[dtype]["score"]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_log_density_against_the_golden_table(dtype):
    log_density = heat_kernel.log_density(*columns(dtype)).double().numpy()
    assert scaled_error(log_density, GOLDEN["log_density"]) < BOUNDS[dtype]["log_density"]


def adversarial_points(n=30_000, seed=1):
    """float32 points at all distances from each other and from both faces, with sigma over its whole range."""
    rng = np.random.default_rng(seed)

    def points():
        depth = 10.0 ** rng.uniform(-9, 0, n)  # distance from a face
        return np.select(
            [kind == 0, kind == 1, kind == 2, kind == 3],
            [depth, 1.0 - depth, rng.uniform(0, 1, n), np.round(rng.uniform(0, 1, n))],
        )

    kind = rng.integers(4, size=n)
    x0 = points()
    sigma = 10.0 ** rng.uniform(-4, np.log10(5), n)
    kind = rng.integers(4, size=n)
    near = np.clip(x0 + sigma * rng.standard_normal(n) * 3.0, 0, 1)
    x = np.where(rng.random(n) < 0.5, points(), near)
    return tuple(torch.tensor(a, dtype=torch.float32) for a in (x, x0, sigma))


def image_sum(x, x0, sigma, images=30):
    """log p and sigma * score from the definition: an image sum of 61 + 61 Gaussians, in extended precision."""
    x, x0, sigma = (np.asarray(a, dtype=np.longdouble) for a in (x, x0, sigma))
    logs, steps = [], []
    for k in range(-images, images + 1):
        for centre in (x0 + 2 * k, -x0 + 2 * k):
            steps.append((centre - x) / sigma)
            logs.append(-0.5 * steps[-1] ** 2)
    top = np.max(logs, axis=0)
    total = sum(np.exp(item - top) for item in logs)
    force = sum(np.exp(item - top) * step for item, step in zip(logs, steps, strict=True))
    return top + np.log(total) - np.log(sigma * np.sqrt(2 * np.longdouble(np.pi))), force / total


def test_float32_against_the_definition_at_hard_points():
    x, x0, sigma = adversarial_points()
    log_density, scaled_score = image_sum(x, x0, sigma)
    error = scaled_error(heat_kernel.log_density(x, x0, sigma).double().numpy(), log_density)
    assert error < 5e-6
    error = scaled_error(heat_kernel.score(x, x0, sigma).double().numpy() * sigma.double().numpy(), scaled_score)
    assert error < 2e-6


@pytest.mark.parametrize("bound", heat_kernel.BOUNDS[:-1])
def test_float64_is_continuous_where_formula_or_number_of_terms_change(bound):
    x, x0 = torch.meshgrid(*[torch.linspace(0, 1, 101, dtype=torch.float64)] * 2, indexing="ij")
    below, above = (bound * (1 + s * 1e-15) for s in (-1, 1))
    for function in (heat_kernel.log_density, heat_kernel.score):
        assert (function(x, x0, below) - function(x, x0, above)).abs().max() < 2e-13


@pytest.mark.parametrize("sigma", [1e-2, 0.1, 0.39, 0.41, 1.0, 5.0])
def test_density_integrates_to_one(sigma):
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    for x0 in (0.0, 0.3, 1.0):
        density = heat_kernel.log_density(x, torch.full_like(x, x0), sigma).exp()
        # The trapezoidal rule converges beyond all powers: every odd derivative vanishes at both ends.
        assert abs(torch.trapezoid(density, x).item() - 1) < 1e-12


def test_score_vanishes_on_the_faces_and_is_symmetric():
    x0, sigma = torch.rand(1000), torch.logspace(-2, 0.7, 1000)
    for face in (0.0, 1.0):
        scaled = heat_kernel.score(torch.full_like(x0, face), x0, sigma) * sigma
        assert scaled.abs().max() < 1e-6
    x = torch.round(torch.rand(1000) * 1024) / 1024  # 1 - x is then exact
    x0 = torch.round(x0 * 1024) / 1024
    mirrored = heat_kernel.score(1 - x, 1 - x0, sigma)
    assert torch.allclose(mirrored * sigma, -heat_kernel.score(x, x0, sigma) * sigma, rtol=1e-5, atol=1e-6)


def test_sigma_is_per_image_and_shapes_broadcast():
    x, x0, sigma = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4), torch.tensor([1e-3, 0.1, 0.39, 0.4, 5.0])
    together = heat_kernel.score(x, x0, sigma)
    for i in range(5):
        alone = heat_kernel.score(x[i : i + 1], x0[i : i + 1], sigma[i].item())
        assert torch.allclose(together[i], alone[0], rtol=1e-6)
    assert heat_kernel.log_density(x[:, None], x0[None], sigma).shape == (5, 5, 3, 4, 4)


def test_a_batch_in_parts_is_the_batch_at_once(monkeypatch):
    x, x0, sigma = torch.rand(7, 1, 11), torch.rand(1, 5, 11), torch.logspace(-3, 0.7, 7)
    for function in (heat_kernel.score, heat_kernel.log_density):
        whole = [function(x, x0, s) for s in (sigma, 0.2)]
        monkeypatch.setattr(heat_kernel, "CPU_CHUNK", 120)  # two images of 55 numbers at a time
        parts = [function(x, x0, s) for s in (sigma, 0.2)]
        for a, b in zip(whole, parts, strict=True):
            assert torch.allclose(a, b, rtol=1e-6)
        monkeypatch.undo()


@pytest.mark.parametrize("function", [heat_kernel.score, heat_kernel.log_density])
@pytest.mark.parametrize(("images", "bound"), [(128, 4), (512, 2)])
def test_the_temporaries_of_a_batch_are_small_beside_it(function, images, bound, monkeypatch):
    x, x0 = torch.rand(images, 3, 32, 32), torch.rand(images, 3, 32, 32)
    sigma, batch = torch.full((images,), 0.3), 4 * x.numel()
    with PeakMemory() as memory:
        function(x, x0, sigma)
    assert 1 < memory.peak / batch < 1 + bound  # the result itself is 1
    monkeypatch.setattr(heat_kernel, "CPU_CHUNK", x.numel())
    with PeakMemory() as memory:
        function(x, x0, sigma)
    assert memory.peak / batch > 8  # so the count does see temporaries


@pytest.mark.parametrize("function", [heat_kernel.score, heat_kernel.log_density])
def test_both_forms_without_synchronization_give_the_same(function, monkeypatch):
    """A GPU evaluates both forms for every image, without reading sigma; tested on a CPU, whole and in chunks."""
    x, x0, sigma = adversarial_points(2000)
    asked = function(x, x0, sigma)
    monkeypatch.setattr(heat_kernel, "SYNC_FREE_DEVICES", ())
    whole = function(x, x0, sigma)
    monkeypatch.setattr(heat_kernel, "GPU_CHUNK", 300)
    assert torch.equal(function(x, x0, sigma), whole)
    scale = sigma if function is heat_kernel.score else 1.0
    assert ((whole - asked) * scale / (1 + (asked * scale).abs())).abs().max() < 1e-6


def test_derivative_by_autograd_is_the_score():
    x = torch.rand(1000, dtype=torch.float64, requires_grad=True)
    x0, sigma = torch.rand(1000, dtype=torch.float64), torch.logspace(-3, 0.5, 1000, dtype=torch.float64)
    heat_kernel.log_density(x, x0, sigma).sum().backward()
    score = heat_kernel.score(x, x0, sigma).detach()
    assert ((x.grad - score) * sigma / (1 + (score * sigma).abs())).abs().max() < 1e-12


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="float32 or float64"):
        heat_kernel.score(torch.rand(3).half(), torch.rand(3).half(), 0.1)


def cumulative(x, x0, sigma):
    """P(X <= x | x0, sigma) from the image sum."""
    total = np.zeros_like(x)
    for k in range(-20, 21):
        for centre in (x0 + 2 * k, -x0 + 2 * k):
            total += stats.norm.cdf((x - centre) / sigma) - stats.norm.cdf(-centre / sigma)
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x0", [0.0, 0.2, 0.97, 1.0])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 0.6, 5.0])
def test_forward_process_has_the_exact_distribution(x0, sigma, dtype):
    generator = torch.Generator().manual_seed(int(1000 * (x0 + sigma)))
    x = heat_kernel.sample(torch.full((50_000,), x0, dtype=dtype), sigma, generator).double().numpy()
    assert x.min() >= 0 and x.max() <= 1
    assert stats.kstest(x, lambda v: cumulative(v, x0, sigma)).pvalue > 1e-3


def test_two_steps_of_the_forward_process_are_one():
    """Chapman-Kolmogorov: variances add."""
    generator = torch.Generator().manual_seed(0)
    half = heat_kernel.sample(torch.full((50_000,), 0.1, dtype=torch.float64), 0.3, generator)
    x = heat_kernel.sample(half, 0.4, generator).numpy()
    assert stats.kstest(x, lambda v: cumulative(v, 0.1, math.hypot(0.3, 0.4))).pvalue > 1e-3

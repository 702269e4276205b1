import numpy as np
import pytest
import torch
from PIL import Image
from scipy.integrate import cumulative_simpson

from errors import CleanError, InputError
from sampling import ProbabilityFlow, create_sampler, guided_score
from sampling.images import save_grid, to_uint8
from sampling.labels import choose_labels
from sde import ReflectedVE, heat_kernel
from tests.conftest import composed
from tests.targets import FIVE_POINTS

SDE = ReflectedVE(0.01, 5.0)


def sampler(*overrides):
    """A sampler as run_vis.py makes it."""
    return create_sampler(composed("load_dir=x", *overrides, name="vis").sampling, SDE)


def draw(sample, n=5000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample(FIVE_POINTS.score, SDE.prior_sample((n, 2), generator), generator)


@pytest.mark.parametrize("corrector", ["none", "langevin"])
def test_component_shares_of_a_solvable_target(corrector):
    """FIVE_POINTS.score itself asserts that it is never asked outside the cube."""
    out = draw(sampler("sampling.steps=400", f"sampling.corrector={corrector}", "sampling.snr=0.1"))
    assert FIVE_POINTS.standard_errors(out.samples).abs().max() < 4
    assert out.samples.min() >= 0 and out.samples.max() <= 1
    # What is left at the end is the noise of sigma_min around each point.
    nearest = FIVE_POINTS.points[torch.cdist(out.samples, FIVE_POINTS.points).argmin(1)]
    spread = (out.samples - nearest).square().mean().sqrt().item()
    assert spread == pytest.approx(0.01, rel=0.05)


def test_clipping_stays_inside_but_is_not_the_reflected_process():
    out = draw(sampler("sampling.steps=100", "sampling.boundary=clip"))
    assert out.samples.min() >= 0 and out.samples.max() <= 1
    assert FIVE_POINTS.standard_errors(out.samples).abs().max() > 4


def test_mean_denoiser_leaves_out_the_last_noise_only():
    noisy, clean = (draw(sampler("sampling.steps=400", f"sampling.denoiser={d}")) for d in ("none", "mean"))
    step = (noisy.samples - clean.samples).square().mean().sqrt().item()
    variance = 0.01**2 * (500 ** (2 / 400) - 1)
    assert step == pytest.approx(variance**0.5, rel=0.05)
    assert noisy.nfe == clean.nfe == 400


def test_the_flow_hits_a_solvable_target_and_does_not_depend_on_the_batch():
    """FIVE_POINTS.score itself asserts that it is never asked outside the cube."""
    flow = sampler("sampling.method=ode")
    calls, steps = [], []

    def score_fn(x, sigma):
        calls.append(sigma)
        return FIVE_POINTS.score(x, sigma)

    x_init = SDE.prior_sample((5000, 2), torch.Generator().manual_seed(0))
    out = flow(score_fn, x_init, on_step=lambda: steps.append(1))
    assert FIVE_POINTS.standard_errors(out.samples).abs().max() < 4
    nearest = FIVE_POINTS.points[torch.cdist(out.samples, FIVE_POINTS.points).argmin(1)]
    assert (out.samples - nearest).square().mean().sqrt().item() == pytest.approx(0.01, rel=0.05)
    assert out.nfe == len(calls) and len(steps) == flow.num_steps
    assert torch.stack(calls).min().item() == pytest.approx(0.01) and calls[0].tolist() == pytest.approx([5.0] * 5000)
    few = flow(FIVE_POINTS.score, x_init[:7]).samples
    assert torch.equal(few, out.samples[:7])


def test_the_flow_solves_the_equation_to_its_tolerance():
    """One point in one dimension: the flow keeps the distribution function, so that the end is known exactly."""
    sigma_max, start, point = 0.2, torch.linspace(0.05, 0.95, 19, dtype=torch.float64)[:, None], 0.3
    sde = ReflectedVE(0.01, sigma_max)

    def distribution(x, sigma):
        grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)[None]
        density = heat_kernel.log_density(grid, torch.full_like(grid, point), sigma).exp()[0]
        return np.interp(x.flatten(), grid[0], cumulative_simpson(density.numpy(), dx=5e-6, initial=0.0))

    flow = ProbabilityFlow(sde, 1e-9, 1e-9)
    end = flow(lambda x, sigma: heat_kernel.score(x, torch.full_like(x, point), sigma), start).samples
    np.testing.assert_allclose(distribution(end, 0.01), distribution(start, sigma_max), atol=1e-6)


def test_a_score_that_is_not_finite_ends_the_flow():
    with pytest.raises(CleanError, match="score is not finite"):
        sampler("sampling.method=ode")(lambda x, _: x / 0.0, torch.rand(2, 3))


@pytest.mark.parametrize(
    ("overrides", "nfe"),
    [
        ([], 1000),
        (["sampling.steps=7"], 7),
        (["sampling.steps=7", "sampling.corrector=langevin"], 14),
        (["sampling.steps=7", "sampling.corrector=langevin", "sampling.n_steps_each=3"], 28),
    ],
)
def test_evaluations_are_counted_and_noise_levels_are_the_schedule(overrides, nfe):
    seen = []

    def score_fn(x, sigma):
        assert sigma.shape == (3,)
        seen.append(sigma[0].item())
        return torch.zeros_like(x)

    steps = []
    out = sampler(*overrides)(score_fn, torch.rand(3, 1, 2, 2), on_step=lambda: steps.append(1))
    assert out.nfe == len(seen) == nfe
    levels = list(dict.fromkeys(seen))
    assert len(steps) == len(levels)
    assert levels[0] == pytest.approx(5.0)
    ratio = 500 ** (1 / len(levels))
    np.testing.assert_allclose(np.divide(levels[:-1], levels[1:]), ratio, rtol=1e-5)
    assert levels[-1] == pytest.approx(0.01 * ratio, rel=1e-5)  # and the step from there ends at sigma_min


def test_the_start_is_honoured_and_a_seed_repeats():
    start = torch.full((4, 3), 0.25)
    seen = []

    def score_fn(x, sigma):
        seen.append(x.clone())
        return -x

    results = [
        sampler("sampling.steps=5")(score_fn, start, torch.Generator().manual_seed(s)).samples for s in (3, 3, 4)
    ]
    assert torch.equal(seen[0], start)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "magic"),
        ("predictor", "ancestral"),
        ("corrector", "ald"),
        ("denoiser", "net"),
        ("boundary", "wrap"),
        ("steps", 0),
        ("+noise_removal", "true"),
        ("steps", 2.5),
        ("n_steps_each", -1),
        ("snr", -1),
        ("snr", "low"),
        ("rtol", 0),
        ("atol", "small"),
    ],
)
def test_bad_options_are_named(key, value):
    plus, name = "+" * key.startswith("+"), key.removeprefix("+")
    with pytest.raises(InputError, match=rf"sampling\.{name}"):
        sampler(*["sampling.method=ode"] * (name in ("rtol", "atol")), f"{plus}sampling.{name}={value}")


def test_the_flow_has_no_noise_to_leave_out():
    with pytest.raises(InputError, match=r"sampling\.denoiser=mean"):
        sampler("sampling.method=ode", "sampling.denoiser=mean")


def test_guidance_is_the_stated_combination_in_one_call():
    calls = []

    def net(x, sigma, labels):
        calls.append(len(x))
        return (labels.float() + 2.0)[:, None] * x * sigma[:, None]

    x, sigma, labels = torch.rand(3, 2), torch.tensor([0.1, 1.0, 5.0]), torch.tensor([0, 1, 7])
    guided = guided_score(net, labels, w=2.5)(x, sigma)
    expected = 3.5 * net(x, sigma, labels) - 2.5 * net(x, sigma, torch.full_like(labels, -1))
    assert torch.allclose(guided, expected, rtol=1e-6)
    assert torch.equal(guided_score(net, labels, w=0)(x, sigma), net(x, sigma, labels))
    assert calls[0] == 6 and calls[3] == 3


def test_labels_to_draw():
    generator = torch.Generator().manual_seed(0)
    labels, columns = choose_labels(3, 1.0, 4, 10, generator)
    assert labels.tolist() == [3] * 4 and columns is None
    labels, columns = choose_labels([0, -1, 9], 0, 7, 10, generator)
    assert labels.tolist() == [0, -1, 9, 0, -1, 9, 0] and columns == 3
    labels, _ = choose_labels(None, 0, 1000, 10, generator)
    assert labels.unique().tolist() == list(range(10))
    assert choose_labels(None, 0, 5, 0, generator) == (None, None)
    for bad in (10, -2, "three", 3.0, True, []):
        with pytest.raises(InputError, match="label="):
            choose_labels(bad, 0, 5, 10, generator)
    with pytest.raises(InputError, match="label=1"):
        choose_labels(1, 0, 5, 0, generator)
    with pytest.raises(InputError, match="w=2"):
        choose_labels(None, 2, 5, 0, generator)


def test_samples_that_are_not_finite_are_no_picture():
    with pytest.raises(CleanError, match="not finite"):
        to_uint8(torch.tensor([[[[0.5, float("nan")]]]]))


def test_pictures(tmp_path):
    x = torch.zeros(6, 1, 8, 8)
    x[4] = 1.0
    x[5] = 0.5019
    pixels = to_uint8(x)
    assert pixels.shape == (6, 8, 8, 1)
    assert pixels.max(axis=(1, 2, 3)).tolist() == [0, 0, 0, 0, 255, 128]
    save_grid(x, tmp_path / "grid.png", columns=3)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (2 * 42 + 2, 3 * 42 + 2, 3)  # 8 pixels enlarged to 40, and 2 between
    assert picture[44:84, 44:84].min() == 255  # image 4 is in the second row, second column

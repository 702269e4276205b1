import numpy as np
import pytest
import torch
from PIL import Image

from sampling import ProbabilityFlow, create_sampler, guided_score
from sampling.folding import karras_sigmas
from sampling.images import save_each, save_grid, save_trajectory, to_uint8
from sampling.labels import labels_of, resolve_labels
from sde import ReflectedVE
from tests.conftest import ROOT, composed
from tests.targets import FIVE_POINTS, FinitePoints
from utils.errors import InputError, UserError
from utils.seeds import image_generators

SDE = ReflectedVE(0.01, 5.0)


def sampler(*overrides):
    """Create a sampler as run_vis.py does."""
    return create_sampler(composed("load_dir=x", *overrides, name="vis").sampling, SDE)


def draw(sample, n=5000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return sample(FIVE_POINTS.score, SDE.prior_sample((n, 2), generator), generator)


def test_mean_denoiser_leaves_out_the_last_noise_only():
    noisy, clean = (draw(sampler("sampling.steps=100", f"sampling.denoiser={d}")) for d in ("none", "mean"))
    step = (noisy.samples - clean.samples).square().mean().sqrt().item()
    variance = 0.01**2 * (500 ** (2 / 100) - 1)
    assert step == pytest.approx(variance**0.5, rel=0.05)
    assert noisy.nfe == clean.nfe == 100


@pytest.mark.parametrize("method", ["pc", "ode", "heun", "multistep", "unipc"])
def test_an_image_does_not_depend_on_its_batch(method):
    sample = sampler(
        f"sampling.method={method}", "sampling.steps=20", "sampling.corrector=langevin", "sampling.eta=0.5"
    )
    results = []
    for n in (9, 4):
        generators = image_generators(7, range(n))
        x_init = torch.stack([SDE.prior_sample((2,), g) for g in generators])
        results.append(sample(FIVE_POINTS.score, x_init, generators).samples)
    assert torch.equal(results[0][:4], results[1])
    assert len(results[0].unique(dim=0)) == 9


@pytest.mark.parametrize(("method", "nfe"), [("ode", None), ("heun", 40), ("multistep", 20)])
def test_the_flow_is_integrated_from_sigma_max_to_sigma_min(method, nfe):
    calls, steps = [], []

    def score_fn(x, sigma):
        calls.append(sigma)
        return FIVE_POINTS.score(x, sigma)

    flow = sampler(f"sampling.method={method}")
    out = flow(score_fn, SDE.prior_sample((50, 2)), on_step=lambda: steps.append(1))
    levels = torch.stack(calls)
    assert out.nfe == len(calls) == (nfe or len(calls)) and len(steps) == flow.num_steps
    assert calls[0].tolist() == pytest.approx([5.0 if method == "ode" else 1.5] * 50)
    lowest = 0.01 if method != "multistep" else karras_sigmas(SDE, 20)[-2]
    assert levels.min().item() == pytest.approx(lowest, rel=1e-5)


def test_noise_levels_of_few_steps():
    levels = karras_sigmas(SDE, 10)
    assert len(levels) == 11 and levels[0] == pytest.approx(1.5) and levels[-1] == pytest.approx(0.01)
    np.testing.assert_allclose(np.diff(np.power(levels, 1 / 7)), (0.01 ** (1 / 7) - 1.5 ** (1 / 7)) / 10, rtol=1e-9)
    assert karras_sigmas(ReflectedVE(0.1, 0.7), 3)[0] == pytest.approx(0.7)
    assert karras_sigmas(ReflectedVE(2.0, 5.0), 3)[0] == pytest.approx(5.0)


@pytest.mark.parametrize("method", ["pc", "ode", "heun", "multistep", "unipc"])
def test_a_trajectory_leads_from_the_start_to_the_samples(method):
    """The states of a trajectory are solutions of the flow that ends there; recording them changes no sample."""
    x_init = SDE.prior_sample((10, 2), torch.Generator().manual_seed(0))
    plain, traced = (
        sampler(f"sampling.method={method}", "sampling.steps=8", f"sampling.trajectory={k}")(
            FIVE_POINTS.score, x_init, torch.Generator().manual_seed(1)
        )
        for k in (0, 5)
    )
    assert plain.trajectory is None and torch.equal(plain.samples, traced.samples)
    assert traced.trajectory.shape == (5, 8, 2)
    assert torch.equal(traced.trajectory[0], x_init[:8]) and torch.equal(traced.trajectory[-1], traced.samples[:8])
    if method == "ode":
        for k in (1, 2, 3):
            there = ProbabilityFlow(ReflectedVE(SDE.sigma(torch.tensor(1 - k / 4)).item(), 5.0))
            x = there(FIVE_POINTS.score, x_init).samples[:8]
            assert (traced.trajectory[k] - x).abs().max() < 5e-4


def test_a_trajectory_has_no_more_moments_than_there_are_steps():
    out = sampler("sampling.steps=3", "sampling.trajectory=9")(lambda x, _: 0 * x, torch.rand(2, 1, 4, 4))
    assert out.trajectory.shape == (4, 2, 1, 4, 4)


@pytest.mark.parametrize("method", ["ode", "heun", "multistep", "unipc"])
def test_mean_denoiser_of_the_flows_is_the_posterior_mean(method):
    point = FinitePoints(torch.tensor([[0.0, 0.4, 1.0]]), torch.ones(1))
    x_init = torch.rand(6, 3)
    noisy, clean = (
        sampler(f"sampling.method={method}", "sampling.trajectory=3", f"sampling.denoiser={d}")(point.score, x_init)
        for d in ("none", "mean")
    )
    assert (noisy.samples - point.points).abs().max() > 1e-3
    assert (clean.samples - point.points).abs().max() < 1e-6
    assert clean.nfe == noisy.nfe + 1 and torch.equal(clean.trajectory[-1], clean.samples)


@pytest.mark.parametrize("method", ["pc", "ode", "heun", "multistep"])
def test_network_denoiser_is_applied_last(method):
    cfg = composed("load_dir=x", f"sampling.method={method}", "sampling.denoiser=network", name="vis").sampling
    x_init = torch.rand(3, 2)
    out = create_sampler(cfg, SDE, denoise=lambda x: x / 2)(FIVE_POINTS.score, x_init, torch.Generator().manual_seed(0))
    cfg.denoiser = "none"
    noisy = create_sampler(cfg, SDE)(FIVE_POINTS.score, x_init, torch.Generator().manual_seed(0))
    assert torch.equal(out.samples, noisy.samples / 2) and out.nfe == noisy.nfe
    cfg.denoiser = "network"
    with pytest.raises(InputError, match="denoiser_path"):
        create_sampler(cfg, SDE)


def test_a_score_that_is_not_finite_ends_the_flow():
    with pytest.raises(UserError, match="score is not finite"):
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


def test_the_start_is_used_and_a_seed_repeats():
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
        ("predictor", "ddim"),
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
        ("moll", 0),
        ("side_eps", 0.5),
        ("trajectory", 1),
        ("trajectory", -2),
    ],
)
def test_bad_options_are_named(key, value):
    plus, name = "+" * key.startswith("+"), key.removeprefix("+")
    with pytest.raises(InputError, match=rf"sampling\.{name}"):
        sampler(
            *["sampling.method=ode"] * (name in ("rtol", "atol", "moll", "side_eps")), f"{plus}sampling.{name}={value}"
        )


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
    assert resolve_labels(3, 1.0, 10) == [3] and resolve_labels([0, -1, 9], 0, 10) == [0, -1, 9]
    assert resolve_labels(None, 1.0, 10) == resolve_labels(None, 0, 0) == []
    for bad in (10, -2, "three", 3.0, True, []):
        with pytest.raises(InputError, match="label="):
            resolve_labels(bad, 0, 10)
    with pytest.raises(InputError, match="label=1"):
        resolve_labels(1, 0, 0)
    with pytest.raises(InputError, match="w=2"):
        resolve_labels(None, 2, 0)


def test_a_label_is_a_function_of_the_number_of_the_image():
    assert labels_of(range(3, 9), [0, -1, 9], 10, seed=0).tolist() == [0, -1, 9, 0, -1, 9]
    labels = labels_of(range(1000), [], 10, seed=0)
    assert labels.unique().tolist() == list(range(10))
    assert torch.equal(labels_of(range(500, 520), [], 10, seed=0), labels[500:520])
    assert not torch.equal(labels_of(range(1000), [], 10, seed=1), labels)
    assert labels_of(range(5), [], 0, seed=0) is None


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        to_uint8(torch.tensor([[[[0.5, float("nan")]]]]))


def test_pictures(tmp_path):
    x = torch.zeros(6, 1, 8, 8)
    x[4] = 1.0
    x[5] = 0.5019
    pixels = to_uint8(x)
    assert pixels.shape == (6, 8, 8, 1)
    assert pixels.max(axis=(1, 2, 3)).tolist() == [0, 0, 0, 0, 255, 128]
    save_grid(pixels, tmp_path / "grid.png", columns=3)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (2 * 42 + 2, 3 * 42 + 2, 3)  # 8 pixels enlarged to 40, and 2 between
    assert picture[44:84, 44:84].min() == 255  # image 4 is in the second row, second column
    save_each(pixels, tmp_path / "single", first=10)
    assert sorted(p.name for p in (tmp_path / "single").iterdir()) == [f"0000{n}.png" for n in range(10, 16)]
    assert np.asarray(Image.open(tmp_path / "single/000015.png")).tolist() == [[[128] * 3] * 8] * 8


def test_pictures_of_colours_and_of_other_numbers_of_channels(tmp_path):
    colours = np.zeros((1, 50, 50, 3), np.uint8)
    colours[..., 1] = 7
    save_grid(colours, tmp_path / "c.png")
    assert np.asarray(Image.open(tmp_path / "c.png"))[2:-2, 2:-2].reshape(-1, 3).tolist() == [[0, 7, 0]] * 2500
    save_grid(np.stack([colours[..., 0], colours[..., 1] + 1], -1), tmp_path / "two.png")
    assert np.asarray(Image.open(tmp_path / "two.png"))[2, 2].tolist() == [4, 4, 4]


def test_a_trajectory_is_a_strip_and_an_animation(tmp_path):
    moments = np.zeros((4, 3, 40, 40, 1), np.uint8)
    moments[2, 1] = 255
    save_trajectory(moments, tmp_path / "trajectory")
    strip = np.asarray(Image.open(tmp_path / "trajectory.png"))
    assert strip.shape == (3 * 42 + 2, 4 * 42 + 2, 3)
    assert strip[44:84, 86:126].min() == 255 and strip[2:42].max() == 128  # the second image, at the third moment
    animation = Image.open(tmp_path / "trajectory.gif")
    durations = []
    for frame in range(animation.n_frames):
        animation.seek(frame)
        durations.append(animation.info["duration"])
    assert sum(durations) == 3 * 100 + 1500 and animation.info["loop"] == 0


def test_the_example_in_two_dimensions_draws_its_picture(tmp_path, monkeypatch):
    """Run the example with less training and fewer points."""
    text = (ROOT / "examples/density_2d.py").read_text()
    assert text.count("4000") == 2 and text.count("200_000") == 2
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(text.replace("4000", "20").replace("200_000", "2_000"), {})
    picture = np.asarray(Image.open("docs/density_2d.png"))
    assert picture.shape == (100, 198, 3)
    assert picture[2:98, 2:98].max() == 255 and picture[2:98, 100:196].max() == 255

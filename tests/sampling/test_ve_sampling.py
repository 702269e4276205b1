"""Samplers of the plain VE process on an exact score, and thresholding of the denoised estimate."""

import numpy as np
import pytest
import torch

from sampling import create_sampler, threshold_denoised
from sampling.draw import draw_samples
from sampling.folding import karras_sigmas
from sde import VE, ReflectedVE
from tests.conftest import composed
from tests.targets import FIVE_POINTS, GaussianMixture
from utils.errors import InputError
from utils.seeds import image_generators

SDE = VE(0.01, 50.0)
TARGET = GaussianMixture(FIVE_POINTS.points, FIVE_POINTS.weights)
METHODS = {
    "pc": ["sampling.steps=400"],
    "ode": [],
    "heun": ["sampling.steps=30"],
    "multistep": ["sampling.steps=40"],
}


def sampler(method, *overrides, process=SDE):
    options = [f"sampling.method={method}", *overrides]
    return create_sampler(composed("load_dir=x", *options, name="vis").sampling, process)


@pytest.mark.parametrize("boundary", ["null", "clip", "dynamic"])
@pytest.mark.parametrize("method", METHODS)
def test_component_shares(method, boundary):
    """The exact denoised estimate lies in [0, 1], so that thresholding changes nothing but rounding."""
    x_init = SDE.prior_sample((4000, 2), torch.Generator().manual_seed(0))
    sample = sampler(method, *METHODS[method], f"sampling.boundary={boundary}")
    out = sample(TARGET.score, x_init, torch.Generator().manual_seed(1))
    assert FIVE_POINTS.standard_errors(out.samples).abs().max() < 4
    left = FIVE_POINTS.rms_distance(out.samples)  # the noise of sigma_min
    assert left == pytest.approx(0.01, rel=0.15 if method == "pc" else 0.05)
    assert out.samples.min() < 0, "nothing keeps the noise of sigma_min inside"


def test_few_steps_start_at_sigma_max():
    levels = karras_sigmas(SDE, 10)
    assert levels[0] == pytest.approx(50.0) and levels[-1] == pytest.approx(0.01)


def test_thresholds_by_hand():
    """Return one image of four values whose denoised estimate is known, in numpy."""
    x, sigma = torch.tensor([[0.5, 2.0, -1.0, 0.3]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    denoised = np.array([0.2, 1.5, -0.5, 0.9])

    def score_fn(x, sigma):
        return (torch.from_numpy(denoised) - x) / sigma[:, None].square()

    def estimate(boundary, percentile=0.995):
        return (x + 0.49 * threshold_denoised(score_fn, boundary, percentile)(x, sigma)).numpy()[0]

    np.testing.assert_allclose(estimate(None), denoised, atol=1e-12)
    np.testing.assert_allclose(estimate("none"), denoised, atol=1e-12)
    np.testing.assert_allclose(estimate("clip"), denoised.clip(0, 1), atol=1e-12)
    for percentile in (0.995, 0.5):
        u = 2 * denoised - 1
        s = max(1.0, np.quantile(np.abs(u), percentile))
        np.testing.assert_allclose(estimate("dynamic", percentile), (u.clip(-s, s) / s + 1) / 2, atol=1e-12)
    assert np.abs(estimate("dynamic") - estimate("clip")).max() > 0.1
    # s is at least 1: an estimate inside [0, 1] stays
    denoised[:] = [0.2, 0.7, 0.4, 0.9]
    np.testing.assert_allclose(estimate("dynamic"), denoised, atol=1e-12)


def test_the_percentile_is_of_each_image():
    wide, inside = torch.tensor([3.0, 0.5, 0.5, 0.5]), torch.tensor([0.1, 0.5, 0.5, 0.9])
    both = torch.stack([wide, inside]).reshape(2, 1, 2, 2)
    held = threshold_denoised(lambda x, sigma: both - x, "dynamic", 1.0)(0 * both, torch.ones(2))
    assert held[0].max().item() == pytest.approx(1.0) and torch.allclose(held[1].flatten(), inside)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("boundary", ["clip", "dynamic"])
def test_every_sampler_keeps_the_estimate_in_the_domain(method, boundary):
    """The score points to 2: with the estimate kept in the domain, samples end within the noise of sigma_min of 1."""
    x_init = SDE.prior_sample((50, 3), torch.Generator().manual_seed(0))

    def score_fn(x, sigma):
        return (2.0 - x) / sigma[:, None].square()

    free, held = (
        sampler(method, *METHODS[method], f"sampling.boundary={b}")(score_fn, x_init, torch.Generator().manual_seed(1))
        for b in ("null", boundary)
    )
    assert (free.samples - 2).abs().max() < 0.1 and (held.samples - 1).abs().max() < 0.1
    assert held.nfe > 0


@pytest.mark.parametrize(
    ("process", "value", "message"),
    [
        (
            SDE,
            "reflect",
            "sampling.boundary=reflect does not fit a process that has no bounds: known are none, clip, dyn",
        ),
        (SDE, "wrap", "sampling.boundary=wrap: known are reflect, clip, none, dynamic, null"),
        (
            ReflectedVE(),
            "dynamic",
            r"sampling.boundary=dynamic does not fit a process that stays in \[0, 1\] by itself",
        ),
        (ReflectedVE(), "none", "sampling.boundary=none does not fit"),
    ],
)
def test_a_boundary_that_does_not_fit_is_refused(process, value, message):
    with pytest.raises(InputError, match=message):
        sampler("heun", f"sampling.boundary={value}", process=process)


def test_other_options_that_do_not_fit_are_refused():
    for option in ("sampling.moll=200", "sampling.side_eps=0.01"):
        with pytest.raises(InputError, match=r"sampling\.moll and sampling\.side_eps"):
            sampler("ode", option)
    for value in (0, 1.5, "high"):
        with pytest.raises(InputError, match=r"sampling\.percentile"):
            sampler("pc", f"sampling.percentile={value}")


@pytest.mark.parametrize("process", [SDE, ReflectedVE()])
def test_drawing_by_number(process):
    """A sample is a function of (seed, number), and equals the composition of its parts."""
    sample = sampler("pc", "sampling.steps=5", process=process)
    labels, steps = torch.tensor([3, 1, 4, 1]), []

    def net(x, sigma, labels):
        return -x * labels[:, None, None]

    out = draw_samples(net, process, sample, (2, 3), range(10, 14), 7, labels, on_step=lambda: steps.append(1))
    assert out.samples.shape == (4, 2, 3) and len(steps) == 5
    part = draw_samples(net, process, sample, (2, 3), range(12, 14), 7, labels[2:])
    assert torch.equal(part.samples, out.samples[2:])
    generators = image_generators(7, range(10, 14))
    x_init = torch.stack([process.prior_sample((2, 3), generator) for generator in generators])
    assert torch.equal(sample(lambda x, sigma: net(x, sigma, labels), x_init, generators).samples, out.samples)
    assert not torch.equal(draw_samples(net, process, sample, (2, 3), range(10, 14), 8, labels).samples, out.samples)

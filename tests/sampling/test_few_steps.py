"""Samplers of few evaluations: order, noise, noise levels of one's own, and the choice of sampling.method=auto."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from sampling import Multistep, UniPC, create_sampler
from sampling.auto import Tuned, create_few_steps, read_tuned, resolve_auto
from sampling.folding import karras_sigmas
from sde import VE, ReflectedVE
from tests.conftest import composed
from tests.targets import FIVE_POINTS, GaussianMixture
from utils.errors import InputError

SDE = ReflectedVE(0.01, 5.0)
FREE = VE(0.01, 5.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def score_of(denoised):
    """Return the score, in free space, whose denoised estimate at every point is ``denoised`` of -log sigma."""
    return lambda x, sigma: (denoised(-sigma.double().log())[:, None] - x) / sigma.double().square()[:, None]


def solution(denoised, x, sigmas):
    """Return the exact flow dx/dlambda = denoised(lambda) - x from the first to the last level, lambda = -log sigma."""
    start, end = -math.log(sigmas[0]), -math.log(sigmas[-1])
    at = torch.linspace(start, end, 100_001, dtype=torch.float64)
    weight = torch.exp(at - end)
    return x * math.exp(start - end) + torch.trapezoid(weight * denoised(at), at)


@pytest.mark.parametrize(("sampler", "degree"), [(Multistep, 0), (UniPC, 0), (UniPC, 2)])
def test_steps_are_exact_for_polynomials(sampler, degree):
    """UniPC is exact for a D of degree 2 once it has three points and as long as it uses them."""

    def denoised(at):
        return 0.3 + (0.2 * at + 0.1 * at**2 if degree else 0.0 * at)

    sigmas = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
    x = torch.tensor([[0.1], [0.7]], dtype=torch.float64)
    states = []

    def watched(y, sigma):
        states.append(y)
        return score_of(denoised)(y, sigma)

    out = sampler(FREE, sigmas=sigmas)(watched, x)
    if not degree:
        torch.testing.assert_close(out.samples, solution(denoised, x, (*sigmas, 0.01)), rtol=0, atol=1e-9)
        return
    # From the third level on, the steps of order 3, and the corrections with a fourth point, leave the error of before.
    exact = [solution(denoised, states[0], sigmas[: k + 1]) for k in range(len(sigmas))]
    errors = [(state - at).abs().max().item() for state, at in zip(states, exact, strict=True)]
    assert errors[1] > 1e-4
    decay = sigmas[4] / sigmas[2]
    torch.testing.assert_close(states[4] - exact[4], (states[2] - exact[2]) * decay, rtol=0.2, atol=1e-3)


@pytest.mark.parametrize(("sampler", "order"), [(Multistep, 2), (UniPC, 3)])
def test_order(sampler, order):
    """At the last level at which the score is evaluated: the very last step of UniPC is of first order."""

    def denoised(at):
        return 0.5 + 0.3 * torch.sin(2.0 * at)

    x = torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    errors = []
    for n in (40, 80):
        sigmas, seen = tuple(np.geomspace(1.0, 0.05, n + 1).tolist()), []

        def score_fn(y, sigma, seen=seen):
            seen.append(y)
            return score_of(denoised)(y, sigma)

        sampler(FREE, sigmas=sigmas)(score_fn, x)
        errors.append((seen[-1] - solution(denoised, x, sigmas)).abs().max().item())
    assert 0.6 * 2**order < errors[0] / errors[1] < 1.8 * 2**order


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_noise_of_multistep_has_the_variance_of_the_process(eta):
    """Of data N(1/2, 0.2^2): the marginals are those of the process whatever the noise."""
    target = GaussianMixture(torch.tensor([[0.5]]), torch.ones(1), 0.2)
    sde = VE(0.05, 5.0)
    x_init = 0.5 + math.sqrt(5.0**2 + 0.2**2) * torch.randn(20_000, 1, generator=seeded())
    x = Multistep(sde, steps=60, eta=eta)(target.score, x_init, seeded(1)).samples
    assert x.mean().item() == pytest.approx(0.5, abs=0.006)
    assert x.std().item() == pytest.approx(math.hypot(0.2, 0.05), rel=0.02)


@pytest.mark.parametrize("point", [0.0, 0.5])
def test_first_step_with_noise_is_ancestral(point):
    """With eta 1 the first step is the exact transition to a single point, also one on a face."""
    x0 = torch.full((20_000, 1), point)
    sde = ReflectedVE(0.02, 5.0)
    x_init = sde.project(x0 + 0.05 * torch.randn(x0.shape, generator=seeded()))

    def score_fn(x, sigma):
        return sde.conditional_score(x, x0, sde.time(sigma))

    x = Multistep(sde, sigmas=(0.05,), eta=1.0)(score_fn, x_init, seeded(1)).samples
    assert (x - x0).square().mean().sqrt().item() == pytest.approx(0.02, rel=0.02)


def test_history_is_kept_where_noise_crosses_a_face():
    """A coordinate on a face has D = 0 at every step; the mirror image of an earlier D would not."""
    x0, seen = torch.zeros(4000, 1), []

    def score_fn(x, sigma):
        seen.append(x)
        return SDE.conditional_score(x, x0, SDE.time(sigma))

    x = Multistep(SDE, sigmas=(0.3, 0.2, 0.1, 0.05), eta=1.0)(score_fn, torch.rand(4000, 1), seeded()).samples
    assert all(((point >= 0) & (point <= 1)).all() for point in seen)
    assert x.square().mean().sqrt().item() == pytest.approx(0.01, rel=0.05)


def test_levels_of_ones_own_are_those_evaluated():
    for sampler in (Multistep, UniPC):
        seen = []

        def score_fn(x, sigma, seen=seen):
            seen.append(sigma[0].item())
            return FIVE_POINTS.score(x, sigma)

        out = sampler(SDE, sigmas=[1.1, 0.5, 0.2, 0.05])(score_fn, torch.rand(3, 2))
        assert seen == pytest.approx([1.1, 0.5, 0.2, 0.05]) and out.nfe == 4
    same = karras_sigmas(SDE, 6)[:-1]
    x_init = torch.rand(5, 2)
    default, given = Multistep(SDE, steps=6), Multistep(SDE, sigmas=tuple(same))
    assert torch.equal(default(FIVE_POINTS.score, x_init).samples, given(FIVE_POINTS.score, x_init).samples)
    assert given.num_steps == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": [0.5, 0.6]}, "sampling.sigmas"),
        ({"sigmas": [0.5, 0.5]}, "sampling.sigmas"),
        ({"sigmas": [6.0, 0.5]}, "sde.sigma_max"),
        ({"sigmas": [0.5, 0.01]}, "sde.sigma_min"),
        ({"sigmas": [0.5], "steps": 2}, "sampling.steps=2"),
    ],
)
def test_levels_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Multistep(SDE, **options)


def sampling(*overrides):
    return composed("load_dir=x", "sampling.method=auto", *overrides, name="vis").sampling


@pytest.mark.parametrize(
    ("overrides", "nfe", "eta"),
    [([], 20, 1.0), (["sampling.nfe=8"], 8, 0.0), (["sampling.nfe=8", "sampling.denoiser=mean"], 8, 0.0)],
)
def test_auto_takes_the_evaluations_that_are_asked_for(overrides, nfe, eta):
    resolved = resolve_auto(sampling(*overrides), SDE)
    assert (resolved["method"], resolved["eta"]) == ("multistep", eta)
    out = create_sampler(sampling(*overrides), SDE)(FIVE_POINTS.score, torch.rand(4, 2), seeded())
    assert out.nfe == nfe
    again = create_sampler(resolved, SDE)(FIVE_POINTS.score, torch.rand(4, 2), seeded())
    assert again.nfe == nfe


@pytest.mark.parametrize("key", ["steps=5", "sigmas=[0.5]"])
def test_auto_refuses_what_it_decides(key):
    with pytest.raises(InputError, match=f"sampling.{key.split('=')[0]}=.*sampling.nfe"):
        create_sampler(sampling(f"sampling.{key}"), SDE)


def test_auto_takes_what_was_tuned():
    tuned = {7: Tuned("unipc", [1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1], 0.0, (0.1, 0.01), (0.2, 0.01))}
    resolved = resolve_auto(sampling("sampling.nfe=7"), SDE, tuned)
    assert (resolved["method"], resolved["steps"], resolved["sigmas"][0]) == ("unipc", 7, 1.0)
    assert isinstance(create_sampler(resolved, SDE), UniPC)
    assert resolve_auto(sampling("sampling.nfe=8"), SDE, tuned)["sigmas"] is None


GOOD = {"method": "multistep", "sigmas": [1.0, 0.5], "eta": 0.5, "energy_distance": [0.1, 0.1], "default": [0.2, 0.1]}


def write_tuned(folder, content):
    (folder / "tuned").mkdir()
    (folder / "tuned/sampling.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_tuned_samplers_are_read(tmp_path):
    assert read_tuned(tmp_path, SDE) == {}
    write_tuned(tmp_path, {"tuned": {"2": GOOD}})
    (found,) = read_tuned(tmp_path, SDE).values()
    assert create_few_steps(SDE, found.method, found.sigmas, found.eta) == Multistep(SDE, sigmas=(1.0, 0.5), eta=0.5)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[" * 100_000,
        "3",
        " " * 2**20 + "{}",
        {},
        {"tuned": [1]},
        {"tuned": {"3": GOOD}},
        {"tuned": {"2": {**GOOD, "sigmas": [0.5, 1.0]}}},
        {"tuned": {"2": {**GOOD, "sigmas": [9.0, 1.0]}}},
        {"tuned": {"2": {**GOOD, "sigmas": [float("nan"), 1.0]}}},
        {"tuned": {"2": {**GOOD, "method": "ode"}}},
        {"tuned": {"2": {**GOOD, "eta": "1"}}},
        {"tuned": {"2": {**GOOD, "more": 1}}},
        {"tuned": {"2": 5}},
        {"tuned": {"\u00b2": GOOD}},
    ],
)
def test_damaged_tuned_samplers_are_refused_by_name(tmp_path, content):
    write_tuned(tmp_path, content)
    with pytest.raises(InputError, match=r"tuned/sampling\.json") as caught:
        read_tuned(tmp_path, SDE)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("options", [{"method": "unipc"}, {"method": "multistep", "eta": 1.0}])
def test_shares_with_few_evaluations(options):
    """Of ten evaluations the shares are those of the weights to within a few per cent."""
    sampler = create_sampler({"method": options["method"], "steps": 14, **options}, SDE)
    x = sampler(FIVE_POINTS.score, torch.rand(5000, 2, generator=seeded()), seeded(1)).samples
    assert (FIVE_POINTS.shares(x) - FIVE_POINTS.weights).abs().max() < 0.04


def test_karras_levels_of_another_start_and_spacing():
    levels = karras_sigmas(SDE, 5, 0.8, 2.0)
    assert levels[0] == pytest.approx(0.8) and levels[-1] == pytest.approx(0.01)
    gaps = [math.sqrt(a) - math.sqrt(b) for a, b in itertools.pairwise(levels)]
    assert gaps == pytest.approx([gaps[0]] * 5)

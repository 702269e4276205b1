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

    sigmas, free = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1), VE(0.01, 0.5)
    x = torch.tensor([[0.1], [0.7]], dtype=torch.float64)
    states = []

    def watched(y, sigma):
        states.append(y)
        return score_of(denoised)(y, sigma)

    out = sampler(free, sigmas=sigmas)(watched, x)
    if not degree:
        torch.testing.assert_close(out.samples, solution(denoised, x, (*sigmas, 0.01)), rtol=0, atol=1e-9)
        return
    # The first steps have an error; from the third level on a step only carries it along.
    exact = [solution(denoised, states[0], sigmas[: k + 1]) for k in range(len(sigmas))]
    errors = [state - at for state, at in zip(states, exact, strict=True)]
    assert errors[3].abs().max() > 1e-5
    torch.testing.assert_close(errors[4], errors[3] * sigmas[4] / sigmas[3], rtol=0, atol=1e-9)


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

        sampler(VE(0.01, 1.0), sigmas=sigmas)(score_fn, x)
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
    """With D = 0.3 everywhere in the cube nothing is extrapolated, also where noise carries points across a face."""
    sde, sigmas = ReflectedVE(0.2, 5.0), (0.5, 0.35, 0.2)
    x_init = torch.rand(500, 1, generator=seeded())

    def score_fn(x, sigma):
        return (0.3 - x) / sigma.square()[:, None]

    found = Multistep(sde, sigmas=sigmas[:2], eta=1.0)(score_fn, x_init, seeded(1)).samples
    x, generator, crossed = x_init, seeded(1), 0
    for sigma, following in itertools.pairwise(sigmas):
        share = (following / sigma) ** 2
        y = share * x + (1 - share) * 0.3 + following * math.sqrt(1 - share) * torch.randn(500, 1, generator=generator)
        crossed, x = crossed + int((y < 0).sum()), sde.project(y)
    assert crossed > 50
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)


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
    with pytest.raises(InputError, match=r"starts from sde\.sigma_max=5"):  # where its noise has that size
        Multistep(FREE, sigmas=(4.0, 0.5))
    with pytest.raises(InputError, match=message):
        Multistep(SDE, **options)


def sampling(*overrides):
    return composed("load_dir=x", "sampling.method=auto", *overrides, name="vis").sampling


@pytest.mark.parametrize(
    ("overrides", "nfe", "eta"),
    [([], 20, 0.0), (["sampling.nfe=8"], 8, 0.0), (["sampling.nfe=2", "sampling.denoiser=mean"], 2, 0.0)],
)
def test_auto_takes_the_evaluations_that_are_asked_for(overrides, nfe, eta):
    resolved = resolve_auto(sampling(*overrides))
    assert (resolved["method"], resolved["eta"]) == ("multistep", eta)
    out = create_sampler(sampling(*overrides), SDE)(FIVE_POINTS.score, torch.rand(4, 2), seeded())
    assert out.nfe == nfe
    again = create_sampler(resolved, SDE)(FIVE_POINTS.score, torch.rand(4, 2), seeded())
    assert again.nfe == nfe


@pytest.mark.parametrize("key", ["steps=5", "sigmas=[0.5]", "eta=0.5"])
def test_auto_refuses_what_it_decides(key):
    with pytest.raises(InputError, match=f"sampling.{key.split('=')[0]}=.*sampling.nfe"):
        create_sampler(sampling(f"sampling.{key}"), SDE)


def test_nfe_is_for_auto_only():
    with pytest.raises(InputError, match=r"sampling\.nfe=8 is for sampling\.method=auto"):
        create_sampler(sampling("sampling.method=multistep", "sampling.nfe=8"), SDE)


def test_auto_takes_what_was_tuned():
    tuned = {
        7: Tuned("unipc", [1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1], 0.0, "checkpoint_1.pth", 20, 0, (0.1, 0.01), (0.2, 0.01))
    }
    resolved = resolve_auto(sampling("sampling.nfe=7"), tuned)
    assert (resolved["method"], resolved["steps"], resolved["sigmas"][0]) == ("unipc", 7, 1.0)
    assert isinstance(create_sampler(resolved, SDE), UniPC)
    assert resolve_auto(sampling("sampling.nfe=8"), tuned)["sigmas"] is None


GOOD = {
    "method": "multistep",
    "sigmas": [1.0, 0.5],
    "eta": 0.5,
    "checkpoint": "checkpoint_2.pth",
    "samples": 100,
    "seed": 0,
    "energy_distance": [0.1, 0.1],
    "default": [0.2, 0.1],
}


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
        {"tuned": {"2": {**GOOD, "sigmas": [1.0] * 100_000}}},
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
    """With 14 evaluations the shares are those of the weights to within a few per cent."""
    sampler = create_sampler({"steps": 14, **options}, SDE)
    x = sampler(FIVE_POINTS.score, torch.rand(5000, 2, generator=seeded()), seeded(1)).samples
    assert (FIVE_POINTS.shares(x) - FIVE_POINTS.weights).abs().max() < 0.04


def test_karras_levels_of_another_start_and_spacing():
    levels = karras_sigmas(SDE, 5, 0.8, 2.0)
    assert levels[0] == pytest.approx(0.8) and levels[-1] == pytest.approx(0.01)
    gaps = [math.sqrt(a) - math.sqrt(b) for a, b in itertools.pairwise(levels)]
    assert gaps == pytest.approx([gaps[0]] * 5)


@pytest.mark.parametrize("process", [VE(0.01, 50.0), VE(0.01, 1.4), ReflectedVE(0.01, 1.2), SDE])
@pytest.mark.parametrize("rho", [1.5, 2.5, 7.0])
def test_levels_begin_and_end_exactly(process, rho):
    levels = karras_sigmas(process, 5, rho=rho)
    assert (levels[0], levels[-1]) == (process.prior_sigma, process.sigma_min)
    Multistep(process, sigmas=tuple(levels[:-1]))  # are in the range of the process

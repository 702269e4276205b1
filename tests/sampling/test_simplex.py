"""Every sampler on the simplex, on targets whose score is known exactly; -rP prints the figures."""

import pytest
import torch

from datasets.simplex import from_ordered
from sampling import Heun, Multistep, PredictorCorrector, ProbabilityFlow, UniPC, create_sampler
from sde import ReflectedSimplex
from tests.conftest import composed
from tests.simplex_targets import DirichletMixture, assert_ordered, compositions
from utils.errors import InputError
from utils.seeds import image_generators

SDE = ReflectedSimplex(0.01, 5.0)
SAMPLERS = {
    "pc, 150": lambda sde: PredictorCorrector(sde, steps=150),
    "pc, ancestral, 60": lambda sde: PredictorCorrector(sde, steps=60, predictor="ancestral"),
    "ode": lambda sde: ProbabilityFlow(sde, 1e-4, 1e-4),
    "heun, 20": lambda sde: Heun(sde, steps=20),
    "multistep, 30": lambda sde: Multistep(sde, steps=30),
    "multistep with noise, 60": lambda sde: Multistep(sde, steps=60, eta=1.0),
    "unipc, 30": lambda sde: UniPC(sde, steps=30),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow(15)
@pytest.mark.parametrize(("parts", "n"), [(3, 2000), (5, 2000), (10, 200)])
@pytest.mark.parametrize("method", SAMPLERS)
def test_shares_of_points_with_parts_that_are_zero(method, parts, n):
    """The target's score asserts that it is evaluated at ordered points only."""
    target = compositions(parts)
    x_init = SDE.prior_sample((n, parts - 1), seeded())
    out = SAMPLERS[method](SDE)(target.score, x_init, seeded(1))
    errors = target.standard_errors(out.samples).abs().max().item()
    print(f"| {parts} | {method} | {out.nfe} | {errors:.1f} |")
    assert_ordered(out.samples)
    assert errors < 4
    nearest = torch.cdist(out.samples, target.points).amin(1).square().mean() / (parts - 1)
    assert nearest.sqrt() < 0.015


@pytest.mark.slow(15)
@pytest.mark.parametrize(("parts", "n", "sigma_min"), [(3, 2000, 0.004), (10, 2000, 0.004), (100, 300, 0.001)])
@pytest.mark.parametrize("method", ["heun, 20", "multistep, 30"])
def test_weights_of_a_dirichlet_mixture(method, parts, n, sigma_min):
    """E part_k = (1 + w_k) / (parts + 1), where w_k is the weight of Dirichlet(1 + e_k)."""
    target = DirichletMixture(parts, {1: 0.2, 3: 0.1, parts: 0.7} if parts > 3 else {1: 0.2, 2: 0.1, 3: 0.7})
    sde = ReflectedSimplex(sigma_min, 5.0)
    x_init = sde.prior_sample((n, parts - 1), seeded())
    gaps = from_ordered(SAMPLERS[method](sde)(target.score, x_init, seeded(1)).samples.double())
    expected = torch.ones(parts, dtype=torch.float64)
    expected[torch.tensor(list(target.weights)) - 1] += target.mixture
    expected /= parts + 1
    errors = (gaps.mean(0) - expected) / (gaps.std(0) / n**0.5)
    without = (gaps.mean(0) - 1 / parts) / (gaps.std(0) / n**0.5)
    print(f"| {parts} | {method} | {errors.abs().max():.1f} | {without.abs().max():.1f} |")
    assert errors[torch.tensor(list(target.weights)) - 1].abs().max() < 4
    assert errors.abs().max() < 4.5  # of up to 100 parts
    assert without.abs().max() > 6, "these moments cannot tell the mixture from the flat law"


@pytest.mark.parametrize("method", SAMPLERS)
def test_a_sample_is_a_function_of_its_own_seed(method):
    target, sampler = compositions(4), SAMPLERS[method](SDE)

    def draw(rows):
        x_init = SDE.prior_sample((len(rows), 3), image_generators(0, rows))
        return sampler(target.score, x_init, image_generators(1, rows)).samples

    together = draw(range(6))
    torch.testing.assert_close(draw(range(2, 5)), together[2:5], atol=2e-5, rtol=0)
    assert_ordered(together)


def test_what_keeps_no_order_is_refused_and_denoised_samples_are_ordered():
    with pytest.raises(InputError, match=r"sampling\.boundary=clip: leaves values in \[0, 1\] but not in order"):
        create_sampler(composed("sampling.boundary=clip").sampling, SDE)

    def pulls_across(x, sigma):
        return (x.flip(1) - x) / sigma.square()[:, None]

    x_init = SDE.prior_sample((50, 3), seeded())
    for method in ("pc", "heun"):
        cfg = composed(f"sampling.method={method}", "sampling.steps=3", "sampling.denoiser=mean").sampling
        samples = create_sampler(cfg, SDE)(pulls_across, x_init, seeded(1)).samples
        assert_ordered(samples)


def test_the_mollified_flow_is_ordered():
    """The factor belongs to the ordered coordinate, whatever the order of the unfolded ones."""
    target = compositions(3)
    sampler = ProbabilityFlow(SDE, 1e-4, 1e-4, moll=200, side_eps=0.01)
    x_init = SDE.prior_sample((20, 2), seeded())

    def mollified(x, sigma):
        return target.score(x, sigma) * ((4.0 - 1.0 / (x * (1.0 - x))) / 200).exp()

    expected = ProbabilityFlow(SDE, 1e-4, 1e-4)(mollified, 0.01 + 0.98 * x_init).samples
    torch.testing.assert_close(sampler(target.score, x_init).samples, expected, atol=1e-4, rtol=0)

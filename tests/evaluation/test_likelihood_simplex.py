"""Densities and bounds on the simplex, against exact ones, and beside stick breaking; -rP prints the figures."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Beta, Dirichlet

from datasets.simplex import from_ordered, from_sticks, sticks_log_det, to_ordered, to_sticks
from evaluation import elbo, log_likelihood
from evaluation.elbo import time_proposal
from losses import PiecewiseUniform
from sde import ReflectedSimplex, ReflectedVE, heat_kernel
from tests.simplex_targets import DirichletMixture, compositions

SDE = ReflectedSimplex(0.02, 5.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(parts):
    """Return a mixture that knows its first and last parts apart, and the third."""
    return DirichletMixture(parts, {1: 0.2, 3: 0.1, parts: 0.7} if parts > 3 else {1: 0.2, 2: 0.1, 3: 0.7})


TARGETS = {"points": compositions, "dirichlet": mixture}


@pytest.mark.slow(15)
@pytest.mark.parametrize(("parts", "n"), [(3, 100), (5, 60), (10, 20)])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_exact_trace_gives_the_density(kind, parts, n):
    target = TARGETS[kind](parts)
    x = target.sample(n, SDE, seeded()).double()
    out = log_likelihood(target.score, SDE, x, "exact", rtol=1e-4, atol=1e-4)
    exact = target.log_density(x, SDE.sigma_min)
    errors = (out.log_prob - exact).abs()
    print(
        f"| {kind} | {parts} | {out.nfe} | {errors.median():.1e} | {errors.quantile(0.95):.1e} | {errors.max():.1e} |"
    )
    assert errors.quantile(0.95) < 0.05
    assert (exact - math.lgamma(parts)).abs().median() > 0.2, "as good as the flat law"


def test_hutchinsons_estimate_has_the_right_mean():
    """Several vectors for each point, at points of the cube where coordinates have changed places."""
    target, n = compositions(3), 400
    sde = ReflectedSimplex(0.1, 5.0)
    x = target.sample(2, sde, seeded()).double()
    exact = target.log_density(x, 0.1)
    many = x.repeat_interleave(n, 0)
    out = log_likelihood(target.score, sde, many, generator=seeded(1), num_probes=2, rtol=1e-4, atol=1e-4)
    errors = out.log_prob.reshape(2, n) - exact[:, None]
    assert errors.std() > 0.02
    assert (errors.mean(1).abs() < 4 * errors.std(1) / math.sqrt(n) + 1e-3).all()


@pytest.mark.parametrize("parts", [3, 6])
def test_the_bound_of_the_flat_law_is_its_density(parts):
    x = SDE.prior_sample((3000, parts - 1), seeded(), dtype=torch.float64)
    bound = elbo(lambda x, sigma: torch.zeros_like(x), SDE, x, None, num_times=10, generator=seeded(1))
    error = bound.log_prob.std().item() / math.sqrt(3000)
    assert error < 0.1
    assert bound.log_prob.mean().item() == pytest.approx(math.lgamma(parts), abs=4 * error)


@pytest.mark.parametrize("proposed", [False, True])
def test_the_bound_of_a_mixture_is_tight(proposed):
    """Of a smooth density and its exact score: from below, and by no more than its curvature at sigma_min."""
    target, n = mixture(4), 2000
    x = target.sample(n, SDE, seeded())
    proposal = PiecewiseUniform(time_proposal(target.score, SDE, x[:64], seeded(2))) if proposed else None
    bound = elbo(target.score, SDE, x, None, num_times=20, proposal=proposal, generator=seeded(1))
    gap = target.log_density(x, SDE.sigma_min) - bound.log_prob
    error = gap.std().item() / math.sqrt(n)
    print(f"{gap.mean():.3f} +- {error:.3f}")
    assert error < 0.06
    assert -4 * error < gap.mean() < 0.1 + 4 * error


NODES, QUADRATURE = (0.5 * torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(400))
NODES = 0.5 + NODES


def stick_laws(target):
    """Return the laws of the sticks of each component, independent beta variables, as parameters (K, n) each."""
    n = target.parts - 1
    shapes = torch.stack([1.0 + torch.eye(target.parts, dtype=torch.float64)[k - 1] for k in target.weights])
    before = torch.cat([torch.zeros(len(shapes), 1), shapes[:, : n - 1].cumsum(1)], 1)
    return shapes, shapes[:, :n], shapes[:, n:] + before


def dirichlet_log_density(target, parts):
    laws, log_weights = stick_laws(target)[0], target.mixture.double().log()
    return (Dirichlet(laws).log_prob(parts[:, None]) + log_weights).logsumexp(1)


@pytest.mark.parametrize("parts", [3, 5, 10])
def test_sticks_of_a_dirichlet_mixture_are_beta_variables(parts):
    target = mixture(parts)
    _, first, second = stick_laws(target)
    p = target.sample_parts(200, seeded())
    x = to_sticks(p)
    torch.testing.assert_close(from_sticks(x), p)
    in_cube = (Beta(first, second).log_prob(x[:, None]).sum(2) + target.mixture.double().log()).logsumexp(1)
    torch.testing.assert_close(in_cube - sticks_log_det(x), dirichlet_log_density(target, p))
    torch.testing.assert_close(from_ordered(to_ordered(p)), p)


def test_both_maps_give_the_density_of_the_same_compositions():
    """The flow on ordered points, and that of the cube on sticks: both against the density without noise."""
    target, n = mixture(4), 60
    p = target.sample_parts(n, seeded())
    _, first, second = stick_laws(target)
    starts = Beta(first[..., None], second[..., None]).log_prob(NODES).exp() * QUADRATURE  # (K, 3, Z)

    def stick_score(x, sigma):
        """Compute the score of the mixture of products of perturbed beta laws, by quadrature over their starts."""
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            kernels = heat_kernel.log_density(at[..., None], NODES.expand(1, 1, -1), sigma).exp()
            logs = torch.einsum("bnz,knz->bkn", kernels, starts).log().sum(2) + target.mixture.double().log()
            return torch.autograd.grad(logs.logsumexp(1).sum(), at, create_graph=x.requires_grad)[0]

    expected = dirichlet_log_density(target, p)
    ordered = log_likelihood(target.score, SDE, to_ordered(p), "exact", rtol=1e-4, atol=1e-4).log_prob
    x = to_sticks(p)
    sticks = log_likelihood(stick_score, ReflectedVE(0.02, 5.0), x, "exact", rtol=1e-4, atol=1e-4).log_prob
    for name, found in (("ordered", ordered), ("sticks", sticks - sticks_log_det(x))):
        errors = (found - expected).abs()
        print(f"| {name} | {errors.median():.3f} | {errors.quantile(0.95):.3f} |")
        assert errors.median() < 0.02 and errors.quantile(0.95) < 0.15
    assert sticks_log_det(x).std() > 0.3

"""The process on the ordered cube, against sums over permutations, Poisson-binomial probabilities and the cube."""

import itertools
import math

import pytest
import torch
from torch import Generator

from datasets.simplex import from_ordered
from sde import ReflectedSimplex, ReflectedVE, create_process
from tests.conftest import tiny_config
from tests.simplex_targets import DirichletMixture, OrderedPoints, log_permanent
from training.data import load_splits
from utils.distributed import Distributed
from utils.errors import InputError
from utils.seeds import image_generators

SDE = ReflectedSimplex(0.05, 5.0)
PERMUTATIONS = list(itertools.permutations(range(3)))


def seeded(seed=0):
    return Generator().manual_seed(seed)


def ordered(n, size, seed=0):
    return torch.rand(n, size, dtype=torch.float64, generator=seeded(seed)).sort(1).values


def log_terms(x, x0, t):
    """Compute the logarithm of the product of kernels for each permutation of ``x0`` (1, 3), (B, 6)."""
    return torch.stack([SDE.log_density(x, x0[:, list(p)], t).sum(1) for p in PERMUTATIONS], 1)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 2.0])
def test_the_permanent_is_the_sum_over_permutations(sigma):
    points = torch.cat([ordered(2, 4, 1), torch.tensor([[0.0, 0.3, 0.3, 1.0]], dtype=torch.float64)])
    target, x = OrderedPoints(points, torch.full((3,), 1 / 3, dtype=torch.float64)), ordered(6, 4)
    logs = target._log_kernels(x, sigma)
    terms = [logs[:, :, torch.arange(4), torch.tensor(p)].sum(-1) for p in itertools.permutations(range(4))]
    torch.testing.assert_close(log_permanent(logs), torch.stack(terms).logsumexp(0))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(target.log_density(leaf, sigma).sum(), leaf)
    torch.testing.assert_close(target.score(x, torch.full((6,), sigma, dtype=torch.float64)), slope)


def test_the_mean_target_given_x_is_the_score_of_the_sum():
    """Of three points, for each x exactly: the mean over permutations, weighted by their probability given x."""
    x, x0, t = ordered(7, 3, 1).requires_grad_(), ordered(1, 3), torch.full((7,), 0.4, dtype=torch.float64)
    terms = log_terms(x, x0, t)
    targets = torch.stack([SDE.conditional_score(x, x0[:, list(p)].expand(7, 3), t) for p in PERMUTATIONS], 1)
    (score,) = torch.autograd.grad(terms.logsumexp(1).sum(), x)
    torch.testing.assert_close((terms.softmax(1)[..., None] * targets).sum(1), score)
    assert terms.softmax(1).amax(1).min() < 0.9, "no x at which two permutations are likely"


def test_pairs_are_drawn_from_the_sum_over_permutations():
    """Each permutation of x0 is as likely as given x, and the targets have the mean of the score: not so unsorted."""
    n, x0, t = 100_000, torch.tensor([[0.1, 0.25, 0.9]], dtype=torch.float64), torch.full((1,), 0.3)
    x, arranged = SDE.sample_pair(x0.expand(n, 3), t.expand(n), seeded())
    assert (x[:, 1:] >= x[:, :-1]).all()
    torch.testing.assert_close(arranged.sort(1).values, x0.expand(n, 3))
    probabilities = log_terms(x, x0, t).softmax(1)
    for k, p in enumerate(PERMUTATIONS):
        surprise = (arranged == x0[:, list(p)]).all(1).double() - probabilities[:, k]
        for weight in (torch.ones(n), x[:, 0], x[:, 1].square()):
            values = surprise * weight
            assert values.mean().abs() <= 4 * values.std() / math.sqrt(n)
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_terms(leaf, x0, t).logsumexp(1).sum(), leaf)

    def deviations(start):
        errors = (SDE.conditional_score(x, start, t) - score) * torch.cos(3.0 * x)
        return (errors.mean(0) / (errors.std(0) / math.sqrt(n))).abs().max()

    assert deviations(arranged) < 4 < 20 < deviations(x0.expand(n, 3))


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.4])
def test_the_mean_gaps_of_samples_are_integrals_of_poisson_binomial_probabilities(sigma):
    n, x0 = 40_000, torch.tensor([[0.0, 0.0, 0.05, 0.4, 1.0]], dtype=torch.float64)
    gaps = from_ordered(SDE.sample(x0.expand(n, 5), SDE.time(torch.full((n,), sigma)), seeded()))
    level = torch.full((1,), sigma, dtype=torch.float64)
    for k in range(1, 7):
        expected = DirichletMixture(6, {k: 1.0}).log_density(x0, level).exp() / math.factorial(6)
        own = gaps[:, k - 1]
        assert own.mean().item() == pytest.approx(expected.item(), abs=4 * own.std().item() / math.sqrt(n))


def test_the_density_of_a_mixture_is_that_of_the_process():
    """Against the integral of the kernel over the triangle, and without noise against torch."""
    target = DirichletMixture(3, {1: 0.2, 2: 0.3, 3: 0.5})
    grid = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    low, high = (part.flatten() for part in torch.meshgrid(grid, grid, indexing="ij"))
    x, inside = torch.tensor([[0.1, 0.3], [0.02, 0.97]], dtype=torch.float64), low < high
    start = torch.stack([low, high], 1)
    kernel = log_permanent(OrderedPoints(start, torch.ones(1))._log_kernels(x, 0.2)).exp()
    prior = 6.0 * from_ordered(start) @ target.mixture.double()
    weights = torch.where(inside, 1.0, torch.where(low == high, 0.5, 0.0)) / 400**2
    torch.testing.assert_close(target.log_density(x, 0.2).exp(), kernel @ (prior * weights), rtol=1e-4, atol=0)
    torch_law = torch.stack([
        torch.distributions.Dirichlet(1.0 + torch.eye(3, dtype=torch.float64)[k]).log_prob(from_ordered(x))
        for k in range(3)
    ])  # fmt: skip
    expected = (torch_law + target.mixture.double().log()[:, None]).logsumexp(0)
    torch.testing.assert_close(target.log_density(x, 1e-4), expected, rtol=1e-4, atol=1e-4)


def test_vectors_are_mapped_by_the_derivative_of_project_and_gradients_by_its_transpose():
    y = 4.0 * torch.rand(5, 4, dtype=torch.float64, generator=seeded()) - 2.0
    v, s = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=seeded(1))
    for k in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda p: SDE.project(p[None])[0], y[k])
        torch.testing.assert_close(SDE.pushforward(y, v)[:, k], v[:, k] @ jacobian.T)
        torch.testing.assert_close(SDE.pullback(y, s)[:, k], s[:, k] @ jacobian)
        torch.testing.assert_close(SDE.pushforward(y, v[:, :1])[:, k], v[:, 0] @ jacobian.T)
    assert torch.equal(SDE.pullback(y, s[0]), SDE.pullback(y, s)[0])
    tied = torch.tensor([[0.25, -0.25, 1.75, 0.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    assert SDE.project(tied).tolist() == [[0.0, 0.25, 0.25, 0.25], [0.5] * 4]
    assert torch.equal(SDE.pullback(tied, SDE.pushforward(tied, v[:, :2])), v[:, :2])
    assert torch.equal(SDE.pushforward(tied, torch.ones(2, 4)).abs(), torch.ones(2, 4))


def test_the_cube_needs_no_order():
    cube, x0, t = ReflectedVE(), torch.rand(4, 2, generator=seeded()), torch.full((4,), 0.5)
    x, same = cube.sample_pair(x0, t, seeded(1))
    assert same is x0 and torch.equal(x, cube.sample(x0, t, seeded(1)))
    y = torch.tensor([[-0.2, 1.5, 2.5]])
    assert (
        cube.pushforward(y, torch.ones(1, 3)).tolist() == cube.pullback(y, torch.ones(1, 3)).tolist() == [[-1, -1, 1]]
    )


def test_the_prior_is_that_of_sorted_uniform_numbers():
    x = SDE.prior_sample((50_000, 4), seeded())
    assert (x[:, 1:] >= x[:, :-1]).all()
    assert ((x.mean(0) - torch.arange(1, 5) / 5).abs() < 4 * x.std(0) / 50_000**0.5).all()
    torch.testing.assert_close(SDE.prior_log_prob(x[:3]), torch.full((3,), math.log(24)))
    together = SDE.prior_sample((4, 3), image_generators(0, range(4)))
    assert torch.equal(SDE.prior_sample((2, 3), image_generators(0, range(1, 3))), together[1:3])
    assert SDE.kl_to_prior(ordered(3, 4)).sum(1).tolist() == pytest.approx([-math.log(24)] * 3)


def test_other_data_are_refused():
    assert create_process({"name": "reflected_simplex", "sigma_min": 0.05}) == SDE
    SDE.check_data(torch.tensor([[0.0, 0.0, 1.0]]), None)
    for data, levels, message in [
        (torch.zeros(2, 1, 4), None, r"is for vectors, and the samples of the data have shape \(1, 4\)"),
        (torch.zeros(2, 4, dtype=torch.uint8), 17, "is for continuous values, and the data have 17 levels"),
        (torch.tensor([[0.1, 0.2], [0.3, 0.2]]), None, "in ascending order, which those of sample 1 are not"),
        (torch.tensor([[0.1, 0.2], [0.3, math.nan]]), None, "in ascending order, which those of sample 1 are not"),
    ]:
        with pytest.raises(InputError, match=r"sde\.name=reflected_simplex .*" + message):
            SDE.check_data(data, levels)
    with pytest.raises(InputError, match=r"sde\.name=reflected_simplex is for vectors"):
        load_splits(tiny_config("sde=reflected_simplex"), Distributed(torch.device("cpu")))

"""Guidance on targets whose scores with and without a class are exact: classes are subsets of finitely many points."""

import math

import pytest
import torch

from models import NULL_LABEL
from sampling import create_sampler, guided_score, threshold_denoised
from sampling.draw import draw_imputed, draw_samples
from sampling.guidance import (
    adaptive_projection,
    clamp_to_hull,
    extrapolation,
    hull,
    hull_coordinate,
    projection,
)
from sde import VE, ReflectedSimplex, ReflectedVE, heat_kernel
from tests.conftest import composed
from tests.simplex_targets import compositions
from tests.targets import FIVE_POINTS, FinitePoints, GaussianMixture
from utils.errors import InputError
from utils.guidance_options import GuidanceOptions

SDE = ReflectedVE(0.01, 5.0)
MEMBERS = torch.tensor(
    [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool
)  # of two classes, and null
LEVELS = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.39, 0.41, 0.7, 1.0, 1.5, 5.0]
HULL = GuidanceOptions(clamp="hull")
FULL = GuidanceOptions(clamp="hull", interval=(0.03, 0.8), eta=0.0, norm_threshold=0.5, momentum=-0.5)
METHODS = {
    "pc": ["sampling.steps=100"],
    "pc with langevin": ["sampling.steps=60", "sampling.corrector=langevin"],
    "ode": ["sampling.rtol=1e-4", "sampling.atol=1e-4"],
    "heun": ["sampling.steps=20"],
    "multistep": ["sampling.steps=30"],
    "multistep with noise": ["sampling.steps=60", "sampling.eta=1"],
    "unipc": ["sampling.steps=30"],
}


class Network:
    """The exact scores of a target of five points by class, called as a network is; counts the rows it is given."""

    def __init__(self, target=FIVE_POINTS):
        self.target, self.rows, self.calls = target, 0, 0

    def __call__(self, x, sigma, labels):
        self.rows, self.calls = self.rows + len(x), self.calls + 1
        assert len(x) == len(sigma) and (labels is None or len(labels) == len(x))
        members = MEMBERS[torch.full((len(x),), NULL_LABEL) if labels is None else labels]
        log_weights = torch.where(members, self.target.weights.log(), -math.inf).to(x.dtype)
        points = self.target.points.to(x.dtype)
        if isinstance(self.target, GaussianMixture):
            logs = -0.5 * ((x[:, None] - points) / sigma[:, None, None]).square().sum(-1)
            return ((logs + log_weights).softmax(1) @ points - x) / sigma[:, None].square()
        logs = heat_kernel.log_density(x[:, None], points[None], sigma).sum(-1)
        scores = heat_kernel.score(x[:, None], points[None], sigma)
        return ((logs + log_weights).softmax(1)[..., None] * scores).sum(1)


def points(n=400, seed=0, dtype=torch.float32):
    """Return points of the square, some of them on its faces and at its corners, and some very near to one."""
    x = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:20, 0], x[20:40, 0], x[40:50], x[50:60, 1] = 0.0, 1.0, torch.tensor([1.0, 0.0]).double(), 1e-6
    return x.to(dtype)


def classes(n):
    return torch.arange(n) % 2


def levels_like(x, sigma):
    return x.new_full((len(x),), sigma)


def sampler(method, *more, process=SDE):
    options = [f"sampling.method={method.split()[0]}", *METHODS[method], *more]
    return create_sampler(composed("load_dir=x", *options, name="vis").sampling, process)


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_score_of_data_is_in_the_hull_and_stays_as_it_is(sigma, dtype):
    x = points(dtype=dtype)
    labels, sigmas = classes(len(x)), levels_like(x, sigma)
    exact = Network()(x, sigmas, labels)
    clamped = guided_score(Network(), labels, 0.0, HULL, SDE)(x, sigmas)
    size = exact.abs().max()
    assert (clamped - exact).abs().max() <= (2e-6 if dtype == torch.float32 else 1e-13) * size
    on_face = (x == 0) | (x == 1)
    assert (clamped[on_face].abs() * sigma).max() < 1e-6


@pytest.mark.parametrize("sigma", LEVELS)
def test_a_guided_score_is_moved_to_the_nearest_end(sigma):
    """The ends are those of the kernel in float64."""
    x = points()
    labels, sigmas = classes(len(x)), levels_like(x, sigma)
    plain = guided_score(Network(), labels, 16.0)(x, sigmas).double()
    low, high = (heat_kernel.score(x.double(), torch.full_like(x, end).double(), sigma) for end in (0, 1))
    expected = torch.minimum(torch.maximum(plain, low), high)
    found = guided_score(Network(), labels, 16.0, HULL, SDE)(x, sigmas).double()
    # A level rounded to float32 is exact here; what is left is the rounding of the kernel.
    scale = torch.maximum(low.abs(), high.abs()) + 1 / sigma
    assert ((found - expected).abs() / scale).max() < 2e-6
    if 0.1 < sigma < 1:
        assert ((plain < low - 1e-3) | (plain > high + 1e-3)).double().mean() > 0.1, "nothing was clamped"


@pytest.mark.parametrize("sigma", [1e-4, 0.01, 0.3, 2.0, 50.0])
def test_for_plain_ve_the_clamp_is_static_thresholding(sigma):
    process, x = VE(1e-4, 50.0), (3 + sigma) * (points() - 0.5) + 0.5
    score_fn = guided_score(Network(GaussianMixture(FIVE_POINTS.points, FIVE_POINTS.weights)), classes(len(x)), 16.0)
    sigmas = levels_like(x, sigma)
    clamped, thresholded = clamp_to_hull(score_fn, process)(x, sigmas), threshold_denoised(score_fn, "clip")(x, sigmas)
    torch.testing.assert_close(x + sigma**2 * clamped, x + sigma**2 * thresholded, rtol=0, atol=4e-6)
    estimate = hull_coordinate(clamped, *hull(process, x, sigmas))
    torch.testing.assert_close(estimate, (x + sigma**2 * clamped).clamp(0, 1), rtol=0, atol=4e-6)
    assert (x + sigma**2 * score_fn(x, sigmas) - estimate).abs().max() > 0.1 or sigma < 0.1


@pytest.mark.parametrize("sigma", [0.003, 0.02, 0.1, 0.5, 1.2])
def test_the_hull_holds_on_the_simplex(sigma):
    process, target = ReflectedSimplex(0.001, 5.0), compositions(4)
    x = process.project(torch.rand(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x[:30] = process.project(x[:30].new_tensor([0.0, 0.5, 1.0]).expand(30, 3))
    sigmas = levels_like(x, sigma)
    score = target.score(x, sigmas)
    low, high = hull(process, x, sigmas)
    assert ((low - score) * sigma).max() < 1e-9 and ((score - high) * sigma).max() < 1e-9
    assert torch.allclose(clamp_to_hull(target.score, process)(x, sigmas), score, rtol=1e-9, atol=1e-9 / sigma)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.8, 1.5])
def test_the_hull_coordinate_is_the_mean_of_an_increasing_function_of_the_data(sigma):
    x = torch.tensor([[0.3, 0.6], [0.9, 0.02]], dtype=torch.float64)
    sigmas, data = levels_like(x, sigma), FIVE_POINTS.points.double()
    ends = hull(SDE, x, sigmas)

    def of_points(y):
        """Return the coordinate of the kernel started at y (K, 2), (B, K, 2)."""
        kernels = heat_kernel.score(x[:, None], y[None], sigmas)
        return hull_coordinate(kernels, ends[0][:, None], ends[1][:, None])

    posterior = FIVE_POINTS._logs(x, sigmas).softmax(1)
    estimate = hull_coordinate(FIVE_POINTS.score(x, sigmas), *ends)
    torch.testing.assert_close(estimate, (posterior[..., None] * of_points(data)).sum(1))
    line = of_points(torch.linspace(0, 1, 101, dtype=torch.float64)[:, None].expand(101, 2))
    assert (line.diff(dim=1) > 0).all()
    torch.testing.assert_close(line[:, [0, -1]], torch.tensor([0.0, 1.0]).double()[:, None].expand(2, 2, 2))
    if sigma < 0.1:
        inside = (x - 0.5).abs() < 0.3
        assert torch.allclose(estimate[inside], (x + sigma**2 * FIVE_POINTS.score(x, sigmas))[inside], atol=1e-6)


def share_of_class(method, w, options):
    """Draw samples, and return the share of those that are within 6 sigma of a point of their class."""
    n = 200
    out = draw_samples(Network(), SDE, sampler(method), (2,), range(n), 0, classes(n), w, guidance=options)
    assert out.samples.min() >= 0 and out.samples.max() <= 1
    distances = torch.cdist(out.samples, FIVE_POINTS.points)
    nearest = torch.where(MEMBERS[classes(n)], distances, math.inf).amin(1)
    return (nearest < 6 * SDE.sigma_min).double().mean()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("w", [0.0, 16.0])
def test_samples_are_points_of_their_class(method, w):
    assert share_of_class(method, w, HULL) == 1
    if method == "multistep" and w:
        assert share_of_class(method, w, GuidanceOptions()) < 0.97, "the clamp is not needed"


@pytest.mark.parametrize("method", ["pc", "ode", "heun", "multistep"])
def test_plain_ve_leaves_the_cube_without_the_clamp_only(method):
    n, process = 100, VE(0.01, 50.0)
    net = Network(GaussianMixture(FIVE_POINTS.points, FIVE_POINTS.weights))
    outside = [
        (draw_samples(net, process, sampler(method, process=process), (2,), range(n), 0, classes(n), 8.0, guidance=g)
         .samples - 0.5).abs().max().item() - 0.5
        for g in (GuidanceOptions(), HULL)
    ]  # fmt: skip
    assert outside[1] < 0.08 and outside[1] < outside[0]


@pytest.mark.parametrize(
    ("w", "options", "weak", "rows", "of_weak"),
    [
        (0.0, GuidanceOptions(), False, 8, 0),
        (0.0, FULL, True, 8, 0),
        (2.0, GuidanceOptions(), False, 16, 0),
        (2.0, HULL, False, 16, 0),
        (2.0, GuidanceOptions(eta=0.5), False, 16, 0),
        (2.0, GuidanceOptions(), True, 8, 8),
        (2.0, GuidanceOptions(interval=(0.1, 0.4)), False, 8 + 3, 0),
        (2.0, GuidanceOptions(interval=(0.1, 0.4)), True, 8, 3),
        (2.0, GuidanceOptions(interval=(0.6, 0.7)), False, 8, 0),
        (2.0, GuidanceOptions(interval=(0.6, 0.7)), True, 8, 0),
        (2.0, GuidanceOptions(interval=(0.0, 5.0), clamp="hull"), False, 16, 0),
    ],
)
def test_rows_that_the_networks_are_given(w, options, weak, rows, of_weak):
    net, weaker, x = Network(), Network(), points(8)
    sigma = torch.tensor([0.05, 0.09, 0.1, 0.2, 0.4, 0.41, 1.0, 5.0])
    guided_score(net, classes(8), w, options, SDE, weaker if weak else None)(x, sigma)
    assert (net.rows, weaker.rows) == (rows, of_weak)
    assert net.calls == 1 and weaker.calls == (of_weak > 0)


def test_a_condition_is_guided_from_the_null_condition():
    """Rows of NaN are the null condition; the interval leaves one of three points to guide."""
    conditions, seen = torch.tensor([[0.2, 1.0], [0.4, 2.0], [0.6, 3.0]]), []

    def net(x, sigma, cond):
        seen.append(cond)
        return torch.where(cond.isnan(), 1.0, cond)[:, :1].expand(x.shape)

    score_fn = guided_score(net, conditions, 2.0, GuidanceOptions(interval=(0.1, 0.5)))
    found = score_fn(torch.zeros(3, 2), torch.tensor([0.05, 0.3, 0.9]))
    torch.testing.assert_close(found[:, 0], torch.tensor([0.2, 3 * 0.4 - 2 * 1.0, 0.6]))
    assert seen[0].shape == (4, 2) and torch.equal(seen[0][:3], conditions) and seen[0][3].isnan().all()


@pytest.mark.parametrize("weak", [False, True])
def test_the_score_is_guided_in_the_interval_only(weak):
    x, labels = points(300), classes(300)
    sigma = torch.logspace(-2, 0.5, 300)
    other = FinitePoints(FIVE_POINTS.points.flip(0), FIVE_POINTS.weights)
    weaker = Network(other) if weak else None
    options = GuidanceOptions(interval=(0.1, 0.6))
    found = guided_score(Network(), labels, 3.0, options, weak=weaker)(x, sigma)
    guided, plain = (guided_score(Network(), labels, w, weak=weaker)(x, sigma) for w in (3.0, 0.0))
    inside = (sigma >= 0.1) & (sigma <= 0.6)
    torch.testing.assert_close(found[inside], guided[inside], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[~inside], plain[~inside], rtol=0, atol=0)
    assert 50 < inside.sum() < 250 and (guided - plain)[inside].abs().max() > 1


@pytest.mark.parametrize("options", [GuidanceOptions(), HULL, FULL], ids=["plain", "hull", "all"])
def test_autoguidance_by_itself_changes_nothing(options):
    x = points()
    labels, sigma = classes(len(x)), levels_like(x, 0.3)
    score_fn = guided_score(Network(), labels, 7.0, options, SDE, Network())
    torch.testing.assert_close(score_fn(x, sigma), Network()(x, sigma, labels), rtol=1e-5, atol=1e-5)


def test_autoguidance_of_a_network_without_labels():
    """The guided score is (1 + w) strong - w weak; without a weaker network and labels, w guides by nothing."""
    x = points()
    sigma, weights = levels_like(x, 0.3), torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    weak = FinitePoints(FIVE_POINTS.points, weights)
    found = guided_score(Network(), None, 1.5, weak=Network(weak))(x, sigma)
    expected = 2.5 * FIVE_POINTS.score(x, sigma) - 1.5 * weak.score(x, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(guided_score(Network(), None, 1.5)(x, sigma), Network()(x, sigma, None))


@pytest.mark.parametrize("sigma", [1e-4, 0.02, 0.3, 1.0, 5.0])
def test_adaptive_projection_with_nothing_adaptive_is_plain_guidance(sigma):
    """Also of scores that data cannot have, and at faces."""
    x, generator = points(), torch.Generator().manual_seed(1)
    score, other = (torch.randn(x.shape, generator=generator) / sigma for _ in range(2))
    arguments = x, levels_like(x, sigma), score, other
    plain, adaptive = extrapolation(3.0)(*arguments), adaptive_projection(SDE, 3.0)(*arguments)
    torch.testing.assert_close(adaptive, plain, rtol=1e-4, atol=1e-5 / sigma)
    for rule in (
        adaptive_projection(SDE, 3.0, 0.0, 0.1),
        adaptive_projection(SDE, 3.0, 0.0, momentum=-0.7),
    ):
        assert rule(*arguments).isfinite().all() and rule(*arguments).isfinite().all()


def test_adaptive_projected_guidance_of_plain_ve_is_algorithm_1():
    """Compare with the algorithm of the paper, in denoised estimates, over three calls."""
    process, w, eta, threshold, momentum = VE(0.01, 50.0), 6.0, 0.25, 0.2, -0.6
    net, x = Network(GaussianMixture(FIVE_POINTS.points, FIVE_POINTS.weights)), points(dtype=torch.float64)
    labels = classes(len(x))
    options = GuidanceOptions(eta=eta, norm_threshold=threshold, momentum=momentum)
    score_fn, average, shortened = guided_score(net, labels, w, options, process), 0.0, 0.0
    for sigma in (0.9, 0.5, 0.3):
        sigmas = levels_like(x, sigma)
        given, null = (x + sigma**2 * net(x, sigmas, label) for label in (labels, None))
        average = given - null + momentum * average
        norm = average.norm(dim=1, keepdim=True)
        difference = average * (threshold / norm).clamp(max=1.0)
        direction = (given - 0.5) / (given - 0.5).norm(dim=1, keepdim=True)
        parallel = (difference * direction).sum(1, keepdim=True) * direction
        expected = given + w * (difference - parallel + eta * parallel)  # w is that of the paper, less 1
        found = x + sigma**2 * score_fn(x, sigmas)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        shortened = max(shortened, (norm > threshold).double().mean())
    assert 0.1 < shortened < 1


def test_projection_is_orthogonal():
    generator = torch.Generator().manual_seed(0)
    v, direction = (torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    direction[4] = 0.0
    parallel = projection(v, direction)
    rest = (v - parallel).flatten(1)
    assert (rest * direction.flatten(1)).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(projection(parallel, direction), parallel)
    assert torch.equal(parallel[4], torch.zeros(1, 4, 4).double()) and parallel[:4].abs().amax((1, 2, 3)).min() > 0.01


def test_the_part_that_is_parallel_to_the_estimate_is_left_out():
    x = points(dtype=torch.float64)[60:]
    labels, sigmas = classes(len(x)), levels_like(x, 0.6)
    ends = hull(SDE, x, sigmas)
    score, guided = (guided_score(Network(), labels, w, GuidanceOptions(eta=0.0), SDE)(x, sigmas) for w in (0.0, 0.5))
    estimate = hull_coordinate(score, *ends)
    change = (guided - score) / (ends[1] - ends[0])
    assert (change * (estimate - 0.5)).sum(1).abs().max() < 1e-9 and change.norm(dim=1).max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_does_not_depend_on_its_batch(method):
    options = GuidanceOptions(clamp="hull", interval=(0.03, 0.8), eta=0.0, norm_threshold=0.5)
    options = options if method == "ode" else FULL

    def draw(numbers):
        labels = torch.tensor(numbers) % 2
        return draw_samples(Network(), SDE, sampler(method), (2,), numbers, 3, labels, 3.0, guidance=options).samples

    whole = draw(range(9))
    torch.testing.assert_close(draw(range(3, 7)), whole[3:7], rtol=0, atol=1e-5)
    assert len(whole.unique(dim=0)) == 9


def test_imputation_with_guidance():
    """Given its first value, the second is that of one of the points of the class."""
    known = torch.tensor([True, False])
    given = torch.tensor([[0.0, 0.0], [0.8, 0.0]]).repeat(20, 1)
    labels = torch.tensor([0, 1]).repeat(20)
    options = GuidanceOptions(clamp="hull", interval=(0.05, 0.5), eta=0.5)
    arguments = Network(), SDE, given, known, range(40), 0, labels, 1.0
    out = draw_imputed(*arguments, steps=60, particles=8, guidance=options)
    assert torch.equal(out.samples[:, 0], given[:, 0])
    expected = torch.tensor([0.0, 0.8]).repeat(20)
    assert ((out.samples[:, 1] - expected).abs() < 0.05).double().mean() > 0.9
    with pytest.raises(InputError, match=r"guidance\.momentum=-0\.5 does not go with given values"):
        draw_imputed(*arguments, guidance=FULL)


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="need the process"):
        guided_score(Network(), classes(2), 1.0, HULL)
    with pytest.raises(InputError, match=r"guidance\.interval=\[2, 1\]: need the lower noise level first"):
        GuidanceOptions(interval=[2, 1])

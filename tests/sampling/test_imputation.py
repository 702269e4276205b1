"""Imputation on targets whose conditional distribution is known exactly; -rP prints the figures of docs/results.md."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from sampling.imputation import impute
from sde import VE, ReflectedVE, heat_kernel
from tests.targets import BOUNDARY, FinitePoints, GaussianMixture
from utils.errors import InputError
from utils.seeds import image_generators

UNKNOWN = math.nan
# the first point has a small weight, and lies on a face where the second is not far
EDGE = FinitePoints(
    torch.tensor([[0.0, 0.2], [0.3, 0.8], [0.6, 0.2], [1.0, 0.6]]), torch.tensor([0.05, 0.15, 0.30, 0.50])
)
# points of 8 coordinates of which a third are on the faces; three of them agree in the first four to 0.2
EIGHT = FinitePoints(
    torch.rand(6, 8, generator=torch.Generator().manual_seed(5)).mul(1.5).sub(0.25).clamp(0.0, 1.0),
    torch.tensor([0.05, 0.20, 0.10, 0.30, 0.25, 0.10]),
)
EIGHT.points[1:3, :4] = (EIGHT.points[:1, :4] + torch.tensor([[0.15], [-0.2]])).clamp(0.0, 1.0)
PLANE = GaussianMixture(EDGE.points, EDGE.weights)
REFLECTED, CASES = ReflectedVE(0.1, 5.0), {
    "on a face, a small weight": (EDGE, [0.0, UNKNOWN]),
    "between two points": (EDGE, [0.15, UNKNOWN]),
    "second coordinate": (EDGE, [UNKNOWN, 0.4]),
    "one of three, on a face": (BOUNDARY, [0.0, UNKNOWN, UNKNOWN]),
    "two of three": (BOUNDARY, [0.2, UNKNOWN, 0.3]),
    "four of eight": (EIGHT, [*EIGHT.points[:2, :4].mean(0).tolist(), *[UNKNOWN] * 4]),
}  # fmt: skip


def normal_log_density(x, x0, sigma):
    return -0.5 * ((x - x0) / sigma).square() - math.log(sigma * math.sqrt(2.0 * math.pi))


def conditional_weights(target, given, sigma, log_kernel):
    """Compute the weights of the points given the values that are not NaN, (K,)."""
    logs = log_kernel(given[None].double(), target.points.double(), sigma).nan_to_num(0.0)
    return (target.weights.double().log() + logs.sum(1)).softmax(0)


def deviations(target, samples, given, sigma, log_kernel):
    """Compute the deviation of the mean posterior of each point from its exact weight, in standard errors, (K,).

    The posterior probability of the points given a sample has the conditional weights as its mean.
    """
    logs = log_kernel(samples[:, None].double(), target.points.double()[None], sigma).sum(-1)
    posterior = (logs + target.weights.double().log()).softmax(1)
    exact = conditional_weights(target, given, sigma, log_kernel)
    error = (exact * (1.0 - exact) / len(samples)).sqrt().maximum(posterior.std(0) / len(samples) ** 0.5)
    return (posterior.mean(0) - exact) / error.clamp(min=1.0 / len(samples))


def draw(target, process, given, n=1500, seed=1, **options):
    given = torch.tensor(given)
    generator = torch.Generator().manual_seed(seed)
    return impute(target.score, process, given.expand(n, -1), ~given.isnan(), generator=generator, **options)


@pytest.mark.slow(60)
@pytest.mark.parametrize("kind", CASES)
def test_conditional_weights(kind):
    """The target's score asserts that it is never evaluated outside the cube."""
    target, given = CASES[kind]
    out = draw(target, REFLECTED, given, n=1000)
    values = torch.tensor(given)
    errors = deviations(target, out.samples, values, 0.1, heat_kernel.log_density).abs().max().item()
    print(f"| {kind} | {out.nfe} | {errors:.1f} |")
    assert errors < 4
    known = ~values.isnan()
    assert torch.equal(out.samples[:, known], values[known].expand(len(out.samples), -1))
    assert out.samples.min() >= 0 and out.samples.max() <= 1


def test_the_test_can_fail():
    """Particles that the known values do not weigh have the weights of the whole distribution."""
    given = torch.tensor([0.0, UNKNOWN])
    exact = conditional_weights(EDGE, given, 0.1, heat_kernel.log_density)
    assert exact[0] > 0.95  # of 0.05
    assert draw(EDGE, REFLECTED, given.tolist(), steps=2, particles=1).nfe == 2
    one = draw(EDGE, REFLECTED, given.tolist(), particles=1).samples
    assert deviations(EDGE, one, given, 0.1, heat_kernel.log_density).abs().max() > 10


def test_the_unknown_has_the_noise_of_sigma_min():
    points = FinitePoints(torch.tensor([[0.0, 0.0], [0.9, 0.6]]), torch.tensor([0.5, 0.5]))
    for given, point in (([0.02, UNKNOWN], 0.0), ([0.91, UNKNOWN], 0.6)):
        x = draw(points, ReflectedVE(0.01, 5.0), given, n=2000, particles=4).samples[:, 1]
        assert (x - point).square().mean().sqrt().item() == pytest.approx(0.01, rel=0.08)


@pytest.mark.parametrize("given", [[0.1, UNKNOWN], [UNKNOWN, 0.3], [-0.2, UNKNOWN]])
def test_plain_ve(given):
    out = draw(PLANE, VE(0.2, 10.0), given)
    assert deviations(PLANE, out.samples, torch.tensor(given), 0.2, normal_log_density).abs().max() < 4


def test_each_depends_on_its_own_generator_only():
    """A mask for each point; the points of a batch, and of another in which they stand elsewhere."""
    given = torch.tensor([[0.1, 0.5], [0.9, 0.2], [0.4, 0.7], [0.3, 0.3]])
    known = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 0]])

    def drawn(rows, images):
        generators = image_generators(7, images)
        options = {"generator": generators, "steps": 20, "particles": 8}
        return impute(EDGE.score, REFLECTED, given[rows], known[rows], **options).samples

    whole = drawn(slice(0, 4), range(4))
    assert torch.equal(whole[known.bool()], given[known.bool()])
    torch.testing.assert_close(drawn(slice(2, 4), range(2, 4)), whole[2:], rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn(slice(0, 1), range(1)), whole[:1], rtol=0, atol=1e-6)
    assert (drawn(slice(0, 1), range(5, 6)) - whole[:1]).abs().max() > 1e-3


def test_rows_of_the_score_are_the_particles_of_each_point():
    given, seen = torch.rand(3, 1, 4, 4), []

    def score_fn(x, sigma):
        seen.append((x.shape, sigma.shape, x[:, 0, 0, 0].reshape(3, 5).std(1).max().item()))
        return torch.zeros_like(x)

    known = torch.zeros(1, 4, 4)
    known[0, 0, 0] = 255
    out = impute(score_fn, REFLECTED, given, known, steps=3, particles=5, on_step=lambda: seen.append("step"))
    assert out.samples.shape == given.shape and out.nfe == 3
    assert seen[::2] == [(torch.Size([15, 1, 4, 4]), torch.Size([15]), 0.0)] * 3 and seen[1::2] == ["step"] * 3


@dataclass(frozen=True)
class Tied(ReflectedVE):
    elementwise: ClassVar[bool] = False


@pytest.mark.parametrize(
    ("process", "given", "known", "message"),
    [
        (REFLECTED, [0.5, UNKNOWN], [1, 1], "finite values"),
        (REFLECTED, [1.5, 0.2], [1, 0], r"known values in \[0, 1\], but they go from 1.5 to 1.5"),
        (REFLECTED, [-1e-3, 0.2], [1, 1], r"known values in \[0, 1\], but they go from -0.001 to 0.2"),
        (Tied(), [0.5, 0.2], [1, 0], "moves each coordinate by itself"),
    ],
)
def test_bad_arguments_are_refused(process, given, known, message):
    with pytest.raises(InputError, match=message):
        impute(EDGE.score, process, torch.tensor([given]), torch.tensor(known))

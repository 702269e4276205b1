"""Maps of the simplex to the cube: round trips with parts that are exactly 0, and Jacobians."""

import pytest
import torch

from datasets.simplex import from_ordered, from_sticks, sticks_log_det, to_ordered, to_sticks

MAPS = {"ordered": (to_ordered, from_ordered), "sticks": (to_sticks, from_sticks)}


def parts_with_zeros(n, parts):
    """Draw compositions of which half the parts are 0; the first ones have a single part."""
    generator = torch.Generator().manual_seed(parts)
    drawn = torch.rand(n, parts, dtype=torch.float64, generator=generator)
    drawn *= torch.rand(n, parts, generator=generator) < 0.5
    drawn[:parts] = torch.eye(parts)
    drawn[drawn.sum(1) == 0] = 1.0
    return drawn / drawn.sum(1, keepdim=True)


@pytest.mark.parametrize("parts", [2, 3, 10, 100])
@pytest.mark.parametrize("kind", MAPS)
def test_round_trips_with_zeros(kind, parts):
    there, back = MAPS[kind]
    p = parts_with_zeros(300, parts)
    x = there(p)
    assert x.min() >= 0 and x.max() <= 1 and x.dtype == torch.float64 and x.isfinite().all()
    torch.testing.assert_close(back(x), p, rtol=0, atol=1e-14)
    assert torch.equal(back(x) == 0, p == 0), "a zero is exactly zero, and nothing else is"
    narrow = back(there(p.float()))
    torch.testing.assert_close(narrow, p.float(), rtol=0, atol=3e-7)
    assert (narrow[p == 0] == 0).all()
    y = torch.rand(300, parts - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = y.sort(1).values if kind == "ordered" else y
    torch.testing.assert_close(there(back(y)), y, rtol=0, atol=1e-9)


def test_ordered_points_are_in_order_and_in_proportion():
    x = to_ordered(torch.rand(1000, 50, generator=torch.Generator().manual_seed(0)) * 7.0)
    assert (x[:, 1:] >= x[:, :-1]).all() and x.min() > 0 and x.max() <= 1 and x.dtype == torch.float32
    assert to_ordered(torch.tensor([2.0, 0.0, 6.0, 0.0])).tolist() == [0.25, 0.25, 1.0]


def test_a_stick_of_nothing_is_zero():
    assert to_sticks(torch.tensor([0.0, 0.0, 0.25, 0.75, 0.0])).tolist() == [0.0, 0.0, 1.0, 0.75]
    assert from_sticks(torch.tensor([0.5, 0.25, 1.0])).tolist() == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("n", [1, 2, 6])
def test_jacobians_against_autograd(n):
    x = torch.rand(5, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_det = sticks_log_det(x)
    for point, expected in zip(x, log_det, strict=True):
        sticks = torch.autograd.functional.jacobian(lambda y: from_sticks(y)[:n], point)
        torch.testing.assert_close(torch.linalg.slogdet(sticks).logabsdet, expected)
        gaps = torch.autograd.functional.jacobian(lambda y: from_ordered(y)[:n], point.sort().values)
        torch.testing.assert_close(torch.linalg.det(gaps), torch.ones((), dtype=torch.float64))
    assert sticks_log_det(torch.tensor([1.0, 0.0])) == 0 and sticks_log_det(torch.tensor([0.0, 1.0])) == -torch.inf

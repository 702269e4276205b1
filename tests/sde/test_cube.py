import numpy as np
import torch

from sde import cube


def test_reflect_agrees_with_a_triangle_wave_in_float64():
    x = np.linspace(-7.3, 9.1, 20_001)
    expected = np.abs((x + 1.0) % 2.0 - 1.0)
    np.testing.assert_allclose(cube.reflect(torch.tensor(x)).numpy(), expected, atol=2e-15)


def test_reflect_keeps_points_of_the_cube_and_tiny_excursions_to_the_bit():
    inside = torch.rand(1000)
    assert torch.equal(cube.reflect(inside), inside)
    tiny = torch.tensor([1e-9, 1e-20, 3e-39, 0.0])
    assert torch.equal(cube.reflect(-tiny), tiny)
    assert cube.reflect(torch.tensor(1.0 + 2**-23)).item() == 1.0 - 2**-23


def test_reflect_stays_in_the_cube_far_away_and_propagates_nan():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 1e6
    folded = cube.reflect(x)
    assert folded.min() >= 0 and folded.max() <= 1
    assert cube.reflect(torch.tensor([float("nan"), float("inf")])).isnan().all()

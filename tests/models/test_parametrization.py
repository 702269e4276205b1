import pytest
import torch
from torch import Tensor

from models import Network, ScoreModel, create_model
from models.parametrization import EDM, OutputParametrization
from utils.errors import InputError

SIGMA = torch.tensor([1e-4, 0.01, 0.3, 5.0], dtype=torch.float64)


class Recorder(Network):
    """A network that returns a constant and records its arguments."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.inputs = (x, sigma, labels)
        return torch.full_like(x, 2.0)


def test_the_output_is_divided_by_sigma_or_not():
    raw, x = torch.randn(4, 3, 2, 5), torch.rand(4, 3, 2, 5)
    sigma = SIGMA.float()
    assert torch.equal(OutputParametrization()(raw, x, sigma), raw / sigma[:, None, None, None])
    assert torch.equal(OutputParametrization(scale_by_sigma=False)(raw, x, sigma), raw)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5)])
def test_edm_is_the_table_of_the_paper_around_the_centre(shape):
    s, generator = 0.3, torch.Generator().manual_seed(0)
    x, raw = (torch.randn(4, *shape, dtype=torch.float64, generator=generator) for _ in range(2))
    sigma = SIGMA.reshape(4, *[1] * len(shape))
    c_skip, c_out = s**2 / (sigma**2 + s**2), sigma * s / torch.sqrt(sigma**2 + s**2)
    c_in = 1 / torch.sqrt(sigma**2 + s**2)
    denoised = 0.5 + c_skip * (x - 0.5) + c_out * raw
    edm = EDM(sigma_data=s)
    assert torch.allclose(edm.scale_input(x, SIGMA), 0.5 + c_in * (x - 0.5), rtol=1e-12)
    assert torch.allclose(edm(raw, x, SIGMA), (denoised - x) / sigma**2, rtol=1e-6)


def test_zero_output_of_edm_is_the_score_of_a_gaussian():
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = -(x - 0.5) / (SIGMA[:, None] ** 2 + 0.25**2)
    assert torch.allclose(EDM(sigma_data=0.25)(torch.zeros_like(x), x, SIGMA), expected, rtol=1e-12)


def test_the_target_of_edm_has_unit_variance_at_every_noise_level():
    """For data N(1/2, s^2) the target of the network is (x0 - c_skip x) / c_out around the centre."""
    s, n, generator = 0.25, 100_000, torch.Generator().manual_seed(0)
    for sigma in SIGMA[1:]:
        x0, noise = (torch.randn(n, dtype=torch.float64, generator=generator) for _ in range(2))
        x0 = 0.5 + s * x0
        x = x0 + sigma * noise
        level = sigma.expand(n)
        edm = EDM(sigma_data=s)
        zero, one = (edm(torch.full_like(x, raw), x, level) * sigma**2 + x for raw in (0.0, 1.0))
        target = (x0 - zero) / (one - zero)
        assert target.std() == pytest.approx(1.0, abs=0.01)
        assert edm.scale_input(x, level).std() == pytest.approx(1.0, abs=0.01)


def test_the_model_scales_the_input_and_parametrizes_the_output():
    network = Recorder((6,))
    model = ScoreModel(network, EDM(sigma_data=0.25))
    x, sigma = torch.rand(4, 6), SIGMA.float()
    score = model(x, sigma)
    assert model.data_shape == (6,) and model.num_classes == 0
    assert torch.equal(network.inputs[0], EDM(0.25).scale_input(x, sigma)) and network.inputs[1:] == (sigma, None)
    assert torch.equal(score, EDM(0.25)(torch.full((4, 6), 2.0), x, sigma)) and score.dtype == torch.float32


def test_a_network_with_classes_always_gets_labels():
    network = Recorder((6,), num_classes=3)
    model = ScoreModel(network, OutputParametrization())
    model(torch.rand(2, 6), torch.ones(2))
    assert network.inputs[2].tolist() == [-1, -1] and network.inputs[2].dtype == torch.int64
    model(torch.rand(2, 6), torch.ones(2), torch.tensor([0, 2]))
    assert network.inputs[2].tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_parametrization_gets_float32_or_wider(dtype):
    class Half(Network):
        def forward(self, x, sigma, labels):
            return x.to(dtype)

    score = ScoreModel(Half((6,)), OutputParametrization(False))(torch.rand(2, 6), torch.ones(2))
    assert score.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_options_reach_the_parametrization():
    model = {"name": "vdm", "channels": 4, "num_blocks": 1, "scale_by_sigma": False, "sigma_data": 0.2, "ema_rate": 0.9}
    data, sde = {"shape": [1, 4, 6], "classes": False}, {"sigma_min": 0.01, "sigma_max": 5.0}
    assert create_model(model, data, sde).parametrization == OutputParametrization(False)
    assert create_model({**model, "parametrization": "edm"}, data, sde).parametrization == EDM(0.2)


def test_the_standard_deviation_is_positive():
    with pytest.raises(InputError, match=r"model\.sigma_data=0"):
        EDM(0.0)

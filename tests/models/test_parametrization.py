import pytest
import torch
from torch import Tensor

from models import Network, ScoreModel, create, create_model
from models.parametrization import (
    EDM,
    FACE_RANGE,
    Kernel,
    KernelWithFaces,
    KernelWithWidth,
    OutputParametrization,
    Parametrization,
)
from sde import ReflectedSimplex, ReflectedVE, cube, heat_kernel
from utils.errors import InputError

SIGMA = torch.tensor([1e-4, 0.01, 0.3, 5.0], dtype=torch.float64)
KERNELS = [Kernel(), KernelWithWidth(), KernelWithFaces(ReflectedVE())]


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


def points(parametrization: Parametrization, sigma: float, n: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
    """Raw outputs, points within a few sigma of each face and everywhere, and noise levels, float32."""
    generator = torch.Generator().manual_seed(0)
    step = sigma * torch.randn(n, 2, generator=generator)
    x = torch.cat([cube.reflect(step), cube.reflect(1 - step), torch.rand(n, 2, generator=generator)], 1)
    raw = 1.5 * torch.randn(n, 6 * parametrization.num_outputs, generator=generator)
    return raw, x, torch.full((n,), sigma)


def outputs_for(x: Tensor, sigma: Tensor, point: Tensor, tau: Tensor | None = None) -> Tensor:
    """The raw output whose denoised point is ``point``, and whose width is ``tau``."""
    sigma, a = sigma[:, None], 0.5
    c_skip, c_out = a**2 / (sigma**2 + a**2), sigma * a / torch.sqrt(sigma**2 + a**2)
    location = (point - 0.5 - c_skip * (x - 0.5)) / c_out
    return location if tau is None else torch.cat([location, 2.0 + torch.log(tau / sigma)], 1)


@pytest.mark.parametrize("point", [0.0, 0.3, 1.0, -0.2, 1.4])
def test_the_kernel_parametrization_is_the_score_of_the_kernel_from_the_denoised_point(point):
    x = torch.rand(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw = outputs_for(x, SIGMA, torch.full_like(x, point))
    expected = heat_kernel.score(x, cube.reflect(torch.full_like(x, point)), SIGMA)
    # Away from the face the point is found again to 1e-16, which the score divides by sigma^2.
    assert torch.allclose(Kernel()(raw, x, SIGMA), expected, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("tau", [0.02, 0.3, 2.0])
def test_the_width_gives_the_score_of_a_reflected_gaussian(tau):
    """Against the integral of kernels over a reflected Gaussian of width tau around a point at and off a face."""
    x = torch.linspace(0, 1, 9, dtype=torch.float64)[None].repeat(4, 1)
    sigma = torch.tensor([0.02, 0.1, 0.5, 2.0], dtype=torch.float64)
    y = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for point in (0.0, 0.8):
        log_prior = heat_kernel.log_density(y, torch.full_like(y, point), tau)
        logs = log_prior + heat_kernel.log_density(x[..., None], y, sigma)
        expected = (logs.softmax(-1) * heat_kernel.score(x[..., None], y, sigma)).sum(-1)
        raw = outputs_for(x, sigma, torch.full_like(x, point), torch.full_like(x, tau))
        assert torch.allclose(KernelWithWidth()(raw, x, sigma), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 0.3, 0.41, 2.0])
def test_the_normal_component_vanishes_at_the_faces(kernel, sigma):
    raw, x, level = points(kernel, sigma)
    for face in (0.0, 1.0):
        assert (kernel(raw, torch.full_like(x, face), level) * sigma).abs().max() < 1e-6
        # Close to it the component is proportional to the distance: the field has no jump.
        small = 1e-3 * sigma
        assert (kernel(raw, torch.full_like(x, abs(face - small)), level) * sigma).abs().max() < 0.2


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 0.1, 0.39, 0.41, 5.0])
def test_float32_holds_at_every_noise_level(kernel, sigma):
    raw, x, level = points(kernel, sigma)
    scores, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        arguments = [part.to(dtype).requires_grad_() for part in (raw, x)]
        score = kernel(*arguments, level.to(dtype)) * sigma
        scores.append(score.double())
        gradients.append([g.double() for g in torch.autograd.grad(score.sum(), arguments)])
    assert (scores[0] - scores[1]).abs().max() < 5e-6
    for single, double, scale in zip(*gradients, (1.0, sigma), strict=True):
        assert ((single - double) * scale).abs().max() < 3e-5


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("sigma", [0.01, 0.3, 0.5])
def test_first_and_second_derivatives(kernel, sigma):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 2, dtype=torch.float64, generator=generator)
    x[0] = torch.tensor([0.5, 0.1 * sigma])  # the nearer face changes at 1/2
    raw = torch.randn(3, 2 * kernel.num_outputs, dtype=torch.float64, generator=generator)
    level = torch.full((3,), sigma, dtype=torch.float64)

    def scaled(raw: Tensor, x: Tensor) -> Tensor:
        return sigma * kernel(raw, x, level)

    arguments = raw.requires_grad_(), x.requires_grad_()
    step = 1e-4 * sigma
    jacobian = torch.autograd.functional.jacobian(scaled, arguments)[1]
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(2)).tolist():
        moved = [arguments[1].detach().clone() for _ in range(2)]
        moved[0][i, j], moved[1][i, j] = moved[0][i, j] + step, moved[1][i, j] - step
        difference = (scaled(raw, moved[0]) - scaled(raw, moved[1])) / (2 * step)
        assert torch.allclose(jacobian[..., i, j] * sigma, difference * sigma, atol=1e-6)
    assert torch.autograd.gradcheck(lambda r: scaled(r, x.detach()), (raw,))
    assert torch.autograd.gradgradcheck(lambda r: scaled(r, x.detach()), (raw,))


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_each_score_between_those_of_the_faces_has_one_point(sigma):
    """The score of the kernel increases in the point: the mean of scores of any data is the score of one point."""
    x, point = torch.linspace(0, 1, 41, dtype=torch.float64), torch.linspace(0, 1, 201, dtype=torch.float64)
    scores = heat_kernel.score(x[1:-1, None], point[None], sigma)
    assert (scores.diff(dim=1) > 0).all()


def test_extreme_outputs_stay_finite():
    x, sigma = torch.rand(4, 6), SIGMA.float()
    for location, width in [(1e4, 0.0), (0.0, 80.0), (0.0, -1e4), (-1e4, 80.0)]:
        raw = torch.cat([torch.full((4, 6), location), torch.full((4, 6), width)], 1).requires_grad_()
        score = KernelWithWidth()(raw, x, sigma)
        (gradient,) = torch.autograd.grad((score * sigma[:, None]).sum(), raw)
        assert score.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("name", ["ddpmpp", "vdm", "adm"])
@pytest.mark.parametrize("kind", ["kernel", "kernel_width"])
def test_every_network_has_the_outputs_of_its_parametrization(name, kind):
    options = {
        "ddpmpp": {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]},
        "vdm": {"channels": 8, "num_blocks": 1},
        "adm": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1},
    }[name]
    model = {"name": name, "parametrization": kind, **options}
    data = {"image_size": 8, "num_channels": 3, "classes": False}
    net = create_model(model, data, {"sigma_min": 0.01, "sigma_max": 5.0}).train()
    x = torch.rand(4, 3, 8, 8)
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0
    for precision in ("fp32", "bf16"):
        score = net.set_precision(precision)(x, SIGMA.float())
        assert score.shape == x.shape and score.dtype == torch.float32
        assert (score[:, :, :2] * SIGMA.float()[:, None, None, None]).abs().max() < 1e-5
    loss = (score * SIGMA.float()[:, None, None, None]).square().sum()
    loss.backward()
    gradient = net.network.conv_out.weight.grad
    assert len(gradient) == 3 * net.parametrization.num_outputs and (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("process", [ReflectedVE(), ReflectedSimplex()])
def test_the_distances_from_the_faces_are_told_in_units_of_sigma(process):
    x = torch.tensor([[0.0, 0.25, 0.25, 1.0], [0.1, 0.2, 0.5, 0.9]], dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.5], dtype=torch.float64)
    parametrization = KernelWithFaces(process)
    inputs = parametrization.scale_input(x, sigma)
    assert torch.equal(inputs[:, :4], KernelWithWidth().scale_input(x, sigma))
    if process.elementwise:
        distances = torch.cat([x, 1 - x], 1)
    else:  # the gaps beside each coordinate
        distances = torch.tensor(
            [[0, 0.25, 0, 0.75, 0.25, 0, 0.75, 0], [0.1, 0.1, 0.3, 0.4, 0.1, 0.3, 0.4, 0.1]]
        ).double()
    t = distances / sigma[:, None]
    assert torch.allclose(inputs[:, 4:], t / (1 + (t / FACE_RANGE) ** 2).sqrt(), atol=1e-6)
    assert inputs[:, 4:].max() < FACE_RANGE and (inputs[0, 4:8] == 0).tolist() == (distances[0, :4] == 0).tolist()


@pytest.mark.parametrize(("name", "inputs"), [("mlp", (3 + 6) * 3 * 64), ("adm", 3 * 3)])
def test_networks_that_take_the_distances_from_the_faces(name, inputs):
    options = {"mlp": {"width": 8}, "adm": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}}[name]
    data = {"image_size": 8, "num_channels": 3, "classes": False}
    model, sde = {"name": name, "parametrization": "kernel_faces", **options}, {"sigma_min": 0.01, "sigma_max": 5.0}
    net = create_model(model, data, sde)
    first, last = (
        (net.network.linear_in, net.network.linear_out)
        if name == "mlp"
        else (net.network.conv_in, net.network.conv_out)
    )
    torch.nn.init.normal_(last.weight)
    net(torch.rand(4, 3, 8, 8), SIGMA.float()).square().sum().backward()
    assert first.weight.shape[1] == inputs and (first.weight.grad.transpose(0, 1).flatten(1).norm(dim=1) > 0).all()


def test_what_a_parametrization_does_not_suit_is_one_line(monkeypatch):
    monkeypatch.setitem(create.NETWORKS, "recorder", Recorder)
    data, sde = {"shape": [6], "classes": False, "num_classes": 1}, {"sigma_min": 0.01, "sigma_max": 5.0}
    message = r"model\.parametrization=kernel_width needs 2 outputs for each value, .* model=recorder takes no num_out"
    with pytest.raises(InputError, match=message):
        create_model({"name": "recorder", "parametrization": "kernel_width"}, data, sde)
    message = (
        r"model\.parametrization=kernel_faces needs 3 inputs for each value, .* model=recorder takes no num_inputs"
    )
    with pytest.raises(InputError, match=message):
        create_model({"name": "recorder", "parametrization": "kernel_faces"}, data, sde)
    assert create_model({"name": "recorder", "parametrization": "kernel"}, data, sde).parametrization == Kernel()
    message = r"model\.parametrization=kernel is for a process reflected at 0 and 1, and sde=ve has no bounds"
    with pytest.raises(InputError, match=message):
        create_model({"name": "recorder", "parametrization": "kernel"}, data, {**sde, "name": "ve"})

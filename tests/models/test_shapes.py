"""ADM and VDM for data of one and three axes, and of two axes of different length."""

import math

import pytest
import torch
from torch import nn

from evaluation.likelihood import _score_and_trace
from models import create_model
from models.layers import PixelAttention, downsample, upsample
from sampling.folding import folded_score
from sde import ReflectedVE
from tests.conftest import composed
from training.loop import create_state
from utils.errors import InputError

SDE = {"sigma_min": 0.01, "sigma_max": 5.0}
NETWORKS = {
    "adm": {"model_channels": 64, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [8], "dropout": 0.0},
    "vdm": {"channels": 8, "num_blocks": 1, "attention": True, "dropout": 0.0},
}
SHAPES = [(2, 12), (3, 4, 8), (2, 2, 4, 6)]


def network(name, shape, parametrization="output", std=0.1):
    """Create a network with random weights in evaluation mode."""
    torch.manual_seed(0)
    data = {"shape": list(shape), "classes": False, "num_classes": 1}
    net = create_model({"name": name, "parametrization": parametrization, **NETWORKS[name]}, data, SDE).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=std)
    return net


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_score_has_the_shape_of_the_data_and_the_right_layout(name, shape):
    x, sigma = torch.rand(3, *shape), torch.tensor([0.05, 0.5, 2.0])
    net = network(name, shape, "kernel_width")
    single, double = net(x, sigma), net.double()(x.double(), sigma.double())
    assert single.shape == x.shape and single.abs().min() > 0
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)
    for p in net.parameters():
        assert p.ndim != 4 or p.is_contiguous(memory_format=torch.channels_last)
        assert p.ndim in (4, 5) or p.is_contiguous()
    if len(shape) != 3:
        assert {p.ndim for p in net.parameters()} == {1, 2, len(shape) + 1}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_one_axis_is_that_of_two_with_kernels_on_one(name):
    """On images that are constant along their height 1, the middle row of a kernel acts and the others see zeros."""
    options = NETWORKS[name] | {"adm": {"channel_mult": [1], "attn_resolutions": [8]}, "vdm": {}}[name]
    one, two = (
        create_model({"name": name, **options}, {"shape": shape, "classes": False, "num_classes": 1}, SDE).eval()
        for shape in ([2, 8], [2, 1, 8])
    )
    for (ours, p), (theirs, q) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert ours == theirs
        nn.init.normal_(q, std=0.1)  # the outer rows too: they must not matter
        p.data = q.data[:, :, q.shape[2] // 2].clone() if q.ndim == 4 else q.data.clone()
    x, sigma = torch.rand(3, 2, 8), torch.tensor([0.05, 0.5, 2.0])
    expected = two(x[:, :, None], sigma)[:, :, 0]
    assert (one(x, sigma) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_three_axes_on_one_slice_is_that_of_two(name):
    options = NETWORKS[name] | {"adm": {"channel_mult": [1], "attn_resolutions": [8]}, "vdm": {}}[name]
    two, three = (
        create_model({"name": name, **options}, {"shape": shape, "classes": False, "num_classes": 1}, SDE).eval()
        for shape in ([2, 4, 8], [2, 1, 4, 8])
    )
    for p, q in zip(two.parameters(), three.parameters(), strict=True):
        nn.init.normal_(q, std=0.1)
        p.data = q.data[:, :, q.shape[2] // 2].clone() if q.ndim == 5 else q.data.clone()
    x, sigma = torch.rand(3, 2, 4, 8), torch.tensor([0.05, 0.5, 2.0])
    expected = three(x[:, :, None], sigma)[:, :, 0]
    assert (two(x, sigma) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_resampling_and_attention_act_on_every_axis(axes):
    x = torch.rand(2, 8, *[4] * axes)
    for axis in range(2, 2 + axes):  # each axis is halved and doubled
        assert downsample(x).shape[axis] == 2 and upsample(x).shape[axis] == 8
    assert torch.allclose(downsample(upsample(x)), x)
    assert torch.allclose(downsample(x).flatten(2).mean(2), x.flatten(2).mean(2))
    attention = PixelAttention(axes, 8, 2, 1e-5, lambda layer: layer)
    nn.init.normal_(attention.out.weight)
    order = torch.randperm(4**axes)

    def permuted(t):
        return t.flatten(2)[:, :, order].reshape(t.shape)

    assert torch.allclose(attention(permuted(x)), permuted(attention(x)), atol=1e-5)
    assert (attention(x) - x).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(1, 4), (1, 2, 4), (1, 2, 2, 2)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_trace_is_that_of_the_jacobian(name, shape):
    net, process, n = network(name, shape, std=0.2), ReflectedVE(0.01, 5.0), math.prod(shape)
    y, sigma = 3 * torch.rand(2, *shape) - 1, torch.full((2,), 0.3)

    def unfolded(y):
        return folded_score(process, net, y[None], sigma[:1])[0]

    probes = torch.eye(n).reshape(n, 1, *shape)
    score, trace = _score_and_trace(process, net, y, sigma, probes)
    jacobians = [torch.autograd.functional.jacobian(unfolded, item).reshape(n, n) for item in y]
    torch.testing.assert_close(score, folded_score(process, net, y, sigma).detach())
    torch.testing.assert_close(trace, torch.stack([j.trace() for j in jacobians]), rtol=1e-3, atol=1e-3)
    assert trace.abs().min() > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_is_near(name, shape):
    net = network(name, shape, "kernel_width")
    x, sigma = torch.rand(3, *shape), torch.tensor([0.05, 0.5, 2.0])
    reference = net(x, sigma)
    score = net.set_precision("bf16")(x, sigma)
    assert score.dtype == torch.float32 and 1e-6 < (score - reference).norm() / reference.norm() < 0.1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_a_gradient(name, shape):
    net = network(name, shape, "kernel_width").train()
    x, sigma = torch.rand(3, *shape), torch.tensor([0.05, 0.5, 2.0])
    net(x, sigma).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in net.parameters() if p.ndim > 1)


def test_half_precision_of_three_axes_is_not_trained_on_a_cpu():
    options = ["precision=bf16", "model=vdm", "model.channels=8", "model.num_blocks=1", "data=fake"]
    cfg = composed(*options, "+data.shape=[1,2,4,4]")
    with pytest.raises(
        InputError, match=r"^precision=bf16: data with three axes train on a CPU with precision=fp32 only$"
    ):
        create_state(cfg, torch.device("cpu"))
    assert create_state(composed(*options, "+data.shape=[1,4,4]"), torch.device("cpu")).step == 0


@pytest.mark.parametrize("shape", [(2, 12), (2, 2, 4, 6)])
@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_to_one_graph(name, shape):
    torch._dynamo.reset()
    net = network(name, shape)
    x, sigma = torch.rand(3, *shape), torch.tensor([0.05, 0.5, 2.0])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(x, sigma)
    torch.testing.assert_close(compiled, net(x, sigma), rtol=1e-4, atol=1e-4)
    compiled.sum().backward()


@pytest.mark.parametrize(("shape", "largest"), [((2, 12), 12), ((1, 4, 8), 8), ((1, 8, 4), 8), ((1, 2, 4, 6), 6)])
def test_attention_is_where_the_largest_side_of_a_level_is_listed(shape, largest):
    data = {"shape": list(shape), "classes": False, "num_classes": 1}
    for sides, at in (([largest], 0), ([largest // 2], 1)):
        net = create_model({"name": "adm", **NETWORKS["adm"], "attn_resolutions": sides}, data, SDE).network
        assert [level.size for level in net.encoder] == [largest, largest // 2]
        for number, level in enumerate(net.encoder):
            assert any(isinstance(block.attention, PixelAttention) for block in level.blocks) == (number == at)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 6], r"^a side of 6 in data.shape=\[1, 6\] is not divisible by 4, which a network of 3 levels needs$"),
        ([1, 8, 10], r"^a side of 10 in data.shape=\[1, 8, 10\] is not divisible by 4"),
        ([1, 8, 4, 2], r"^a side of 2 in data.shape=\[1, 8, 4, 2\] is not divisible by 4"),
        ([1, 6, 6], r"^data.image_size=6 \(or a side of 6 in data.shape=\[1, 6, 6\]\) is not divisible by 4"),
        ([7], r"^model=adm is for data \(C, L\), \(C, H, W\) or \(C, D, H, W\), and the data have shape \(7,\)$"),
    ],
)
def test_a_shape_that_does_not_suit_is_one_line(shape, message):
    data = {"shape": shape, "classes": False, "num_classes": 1}
    with pytest.raises(InputError, match=message):
        create_model({"name": "adm", "model_channels": 8, "channel_mult": [1, 1, 1]}, data, SDE)

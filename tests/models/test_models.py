import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import create_model
from models.adm import ADM
from models.io.config import parse_config
from models.io.published import published_tensors
from models.io.weights import read_weights
from models.layers import GroupNorm
from models.parametrization import OutputParametrization
from models.score_model import ScoreModel
from tests.conftest import composed
from utils.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = ("ddpmpp_small", "vdm_small", "adm_small")
PUBLISHED = {
    "cifar10_ddpmpp": ["data=cifar10", "model=ddpmpp"],
    "cifar10_vdm": ["data=cifar10", "model=vdm", "sde.sigma_min=0.0001"],
    "imagenet64c_adm": ["model=adm", "data.image_size=64", "data.classes=true", "data.num_classes=1000"],
}


def small(network):
    """Create a model of a published configuration; return it and the configuration in the keys of this code."""
    cfg = parse_config((GOLDEN / f"{network}.yaml").read_text(), GOLDEN / f"{network}.yaml")
    return create_model(cfg.model, cfg.data, cfg.sde).eval(), cfg


def published_values(name, shape):
    """Generate the weight behind the numbers in tests/golden from its published name."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.tensor(values * (0.5 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1), dtype=torch.float32)


def published_checkpoint(net, cfg):
    """Return the checkpoint that the published code would save with these weights, and the order of its EMA."""
    model, trained = {}, []
    for entry in published_tensors(net, cfg.sde):
        if entry.ours is None:
            model[entry.name] = entry.constant
            continue
        parameter = net.get_parameter(entry.ours)
        model[entry.name] = published_values(entry.name, entry.convert(parameter).shape)
        trained += [entry.name] * parameter.requires_grad
    shadows = [model[name].clone() for name in trained]
    return {"model": model, "ema": {"decay": 0.9999, "num_updates": 2, "shadow_params": shadows}, "step": 2}, trained


def with_published_weights(network):
    net, cfg = small(network)
    checkpoint, _ = published_checkpoint(net.network, cfg)
    net.network.load_state_dict(read_weights(net.network, cfg, checkpoint, Path("golden")).averages)
    return net


@pytest.mark.parametrize("network", [*SMALL, *PUBLISHED])
def test_every_published_tensor_is_one_of_ours_and_the_other_way_round(network):
    if network in SMALL:
        net, cfg = small(network)
    else:
        cfg = composed(*PUBLISHED[network])
        with torch.device("meta"):
            net = create_model(cfg.model, cfg.data, cfg.sde)
    net = net.network
    manifest = json.loads((GOLDEN / f"{network}.manifest.json").read_text())
    parameters = dict(net.named_parameters())
    table = published_tensors(net, cfg.sde)
    shapes = {e.name: list((e.convert(parameters[e.ours]) if e.ours else e.constant).shape) for e in table}
    assert list(shapes.items()) == list(manifest["state_dict"].items())
    assert [e.name for e in table if e.ours and parameters[e.ours].requires_grad] == manifest["trainable_in_order"]
    assert [e.ours for e in table if e.ours] == list(parameters) == list(net.state_dict())
    assert sum(p.numel() for p in parameters.values()) == manifest["parameters"]


@pytest.mark.parametrize("network", SMALL)
def test_small_networks_compute_what_the_published_ones_do(network):
    net = with_published_weights(network)
    golden = np.load(GOLDEN / f"{network}.npz")
    x, sigma, labels = (torch.tensor(golden[key]) for key in ("x", "sigma", "labels"))
    score = net(x, sigma, labels if net.num_classes else None).detach().numpy()
    assert np.abs(score - golden["score"]).max() <= 2e-6 * np.abs(golden["score"]).max()
    errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(score, golden["score"], strict=True)]
    largest = np.abs(score - golden["score"]).max() / np.abs(golden["score"]).max()
    print(f"{network} against published: of an image {max(errors):.1e}, of the largest deviation {largest:.1e}")
    assert max(errors) <= 2e-6


@pytest.mark.parametrize("network", SMALL)
def test_a_fresh_network_starts_at_zero_and_scales_by_sigma(network):
    torch.manual_seed(0)
    net, _ = small(network)
    x, sigma = torch.rand(4, 3, 16, 16), torch.tensor([0.01, 0.1, 1.0, 5.0])
    assert (net(x, sigma) * sigma.reshape(-1, 1, 1, 1)).abs().max() < 1e-3
    nn.init.normal_(net.network.conv_out.weight)
    scaled = net(x, sigma)
    net.parametrization = OutputParametrization(scale_by_sigma=False)
    unscaled = net(x, sigma)
    assert unscaled.abs().max() > 1
    assert torch.allclose(scaled * sigma.reshape(-1, 1, 1, 1), unscaled, rtol=1e-6)


# What a tensor of the published networks starts from, by its published name: (distribution, standard deviation), or the
# constant that fills it. W and NIN are of DDPM++ with init_scale 0, which stands for a variance scale of 1e-10.
def initial_ddpmpp(name, shape, fan_in, last):
    if name == "all_modules.0.W":
        return "normal", 16.0  # fourier_scale
    if len(shape) == 1:
        return 1.0 if "weight" in name else 0.0
    fan_avg = 0.5 * (fan_in + shape[0] * np.prod(shape[2:]))
    if "NIN" in name:
        return "uniform", ((1e-10 if "NIN_3" in name else 0.1) / fan_avg) ** 0.5
    starts_at_zero = "Conv_1" in name or name.startswith(f"all_modules.{last}.")
    return "uniform", ((1e-10 if starts_at_zero else 1.0) / fan_avg) ** 0.5


def initial_vdm(name, shape, fan_in, _):
    if len(shape) == 1:
        return 1.0 if (name.endswith("weight") and "norm" in name) or name == "out.0.weight" else 0.0
    if any(part in name for part in ("conv2.", ".cond_map.", "proj_out", "out.2.")):
        return 0.0
    return "normal", fan_in**-0.5


def initial_adm(name, shape, fan_in, _):
    if "norm" in name:
        return 1.0 if name.endswith("weight") else 0.0
    if any(part in name for part in ("conv1.", "proj.", "out_conv.")):
        return 0.0
    if name == "model.map_label.weight":
        return "normal", 1.0
    return "uniform", (3 * fan_in) ** -0.5  # U(-1/sqrt(fan_in), 1/sqrt(fan_in)), biases too


INITIAL = {
    "ddpmpp": (
        initial_ddpmpp,
        ["model.nf=32", "model.ch_mult=[1,2]", "model.num_res_blocks=1", "model.attn_resolutions=[16]"],
    ),
    "vdm": (initial_vdm, ["model.channels=32", "model.num_blocks=1", "model.attention=true"]),
    "adm": (
        initial_adm,
        ["model.model_channels=64", "model.channel_mult=[1,2]", "model.num_blocks=1", "data.classes=true"],
    ),
}


@pytest.mark.parametrize("network", INITIAL)
def test_every_tensor_starts_as_the_published_one_does(network):
    rule, options = INITIAL[network]
    cfg = composed("data=cifar10", f"model={network}", *options)
    torch.manual_seed(0)
    net = create_model(cfg.model, cfg.data, cfg.sde).network
    table = [entry for entry in published_tensors(net, cfg.sde) if entry.ours]
    tensors = {entry.name: entry.convert(net.get_parameter(entry.ours)).detach().double() for entry in table}
    last = max((int(name.split(".")[1]) for name in tensors if name.startswith("all_modules")), default=None)
    drawn = 0
    for name, tensor in tensors.items():
        layer = tensors[name.rpartition(".")[0] + ".weight"] if name.endswith("bias") else tensor
        fan_in = layer[0].numel() if layer.ndim > 1 else None
        expected, n = rule(name, tensor.shape, fan_in, last), tensor.numel()
        if not isinstance(expected, tuple):
            assert (tensor == expected).all(), name
            continue
        drawn += 1
        kind, deviation = expected
        assert tensor.mean().abs() < 5 * deviation / n**0.5, name
        of_deviation = {"uniform": 0.2, "normal": 0.5}[kind] ** 0.5 / n**0.5  # relative error, from the fourth moment
        assert abs(tensor.square().mean().sqrt() / deviation - 1) < 5 * of_deviation, name
        if kind == "uniform":
            assert 0.6 < tensor.abs().max() / (3**0.5 * deviation) <= 1 + 1e-6, name
    assert drawn > 10


def test_the_null_label_is_no_label_and_class_zero_is_a_class():
    net = with_published_weights("adm_small")
    x, sigma = torch.rand(3, 3, 16, 16), torch.full((3,), 0.5)
    none = net(x, sigma)
    assert torch.equal(net(x, sigma, torch.tensor([-1, -1, -1])), none)
    assert (net(x, sigma, torch.tensor([0, 0, 0])) - none).abs().max() > 1e-3


def test_networks_without_classes_refuse_labels():
    x, sigma, labels = torch.rand(2, 3, 16, 16), torch.ones(2), torch.tensor([0, 1])
    without = ScoreModel(ADM((3, 16, 16), model_channels=16, channel_mult=[1], num_blocks=1), OutputParametrization())
    for net in (small("ddpmpp_small")[0], small("vdm_small")[0], without):
        with pytest.raises(InputError, match="classes"):
            net(x, sigma, labels)


SDE = {"sigma_min": 0.01, "sigma_max": 5.0, "num_scales": 1000}
DATA = {"image_size": 16, "num_channels": 1, "classes": False, "num_classes": 10}


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"name": "unet"}, {}, "model.name=unet"),
        ({"name": "ddpmpp", "colour": 3}, {}, "colour"),
        ({"name": "ddpmpp", "nf": 16}, {"image_size": 12}, "data.image_size=12"),
        ({"name": "ddpmpp", "nf": 16}, {"classes": True}, "data.classes=True"),
        ({"name": "adm", "model_channels": 5, "channel_mult": [1], "num_blocks": 1}, {}, "model.model_channels=5"),
        ({"name": "adm", "model_channels": 224, "channel_mult": [1], "attn_resolutions": [16]}, {}, "3 heads"),
        ({"name": "vdm", "channels": 2}, {}, "model.channels=2"),
        ({"name": "vdm", "image_fourier_end": 3}, {}, "model.image_fourier_end=3"),
        ({"name": "vdm", "image_fourier_start": -1}, {}, "model.image_fourier_start=-1"),
        ({"name": "vdm", "sigma_min": 1.0}, {}, "model.sigma_min"),
        ({"name": "adm", "model_channels": 36, "channel_mult": [4], "num_blocks": 1}, {}, "144 channels"),
        ({"name": "ddpmpp", "data_shape": [3, 8, 8]}, {}, "model.data_shape: no such option"),
        ({"name": "ddpmpp", "parametrization": "eps"}, {}, "model.parametrization=eps: known are output, edm"),
        ({"name": "ddpmpp", "parametrization": "edm", "sigma_data": 0.0}, {}, "model.sigma_data=0.0"),
        ({"name": "ddpmpp"}, {"shape": [3, 16, 8]}, r"model=ddpmpp is for square images, .* shape \(3, 16, 8\)"),
        ({"name": "vdm"}, {"shape": [5]}, r"model=vdm is for data \(C, L\), .*, and the data have shape \(5,\)"),
        (
            {"name": "vdm"},
            {"cond_size": 2},
            "data.cond_size=2, but model=vdm takes no condition: use model=adm or",
        ),
        ({"name": "mlp"}, {"cond_size": 2, "classes": True}, "data.cond_size=2 and data.classes=True: a network has"),
    ],
)
def test_bad_models_are_named(model, data, message):
    with pytest.raises(InputError, match=message):
        create_model(model, DATA | data, SDE)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (4, 24)])
def test_any_number_of_channels_and_any_divisible_size(channels, size):
    data = DATA | {"image_size": size, "num_channels": channels}
    x, sigma = torch.rand(2, channels, size, size), torch.tensor([0.1, 1.0])
    for model in (
        {"name": "ddpmpp", "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [size // 2]},
        {"name": "vdm", "channels": 16, "num_blocks": 1, "attention": True},
        {"name": "vdm", "channels": 5, "num_blocks": 1, "image_fourier": False},
        {"name": "adm", "model_channels": 64, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [size]},
    ):
        assert create_model(model, data, SDE)(x, sigma).shape == x.shape


def test_vdm_takes_images_of_any_height_and_width():
    model, data = {"name": "vdm", "channels": 8, "num_blocks": 1}, {"shape": [2, 6, 10], "classes": False}
    net = create_model(model, data, SDE)
    x = torch.rand(3, 2, 6, 10)
    assert net.data_shape == (2, 6, 10) and net(x, torch.ones(3)).shape == x.shape


def test_adm_attends_with_a_head_for_every_64_channels_and_below_that_not_at_all():
    options = {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": [8]}
    few, many = (ADM((1, 8, 8), model_channels=c, **options) for c in (32, 128))
    assert not [name for name, _ in few.named_parameters() if "attention" in name]
    assert {m.heads for m in many.modules() if hasattr(m, "heads")} == {2}


@pytest.mark.parametrize("network", SMALL)
def test_double_precision_agrees_with_single(network):
    net = with_published_weights(network)
    x, sigma = torch.rand(4, 3, 16, 16), torch.tensor([0.01, 0.1, 1.0, 5.0])
    single, double = net(x, sigma), net.double()(x.double(), sigma.double())
    errors = ((single.double() - double).flatten(1).norm(dim=1) / double.flatten(1).norm(dim=1)).tolist()
    print(f"{network}, float32 against float64: {max(errors):.1e}")
    assert max(errors) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("network", SMALL)
def test_half_precision_keeps_norms_embeddings_and_the_score_in_float32(network, precision):
    net = with_published_weights(network)
    norms, embeddings, maps = set(), set(), set()
    for name, module in net.named_modules():
        into = norms if isinstance(module, GroupNorm) else embeddings if name.endswith((".embed1", ".embed2")) else maps
        if not list(module.children()) and not isinstance(module, nn.Identity | nn.Dropout):
            module.register_forward_hook(lambda _, __, out, into=into: into.add(out.dtype))
    x, sigma = torch.rand(4, 3, 16, 16), torch.tensor([0.01, 0.1, 1.0, 5.0])
    labels = torch.tensor([0, 3, -1, 9]) if net.num_classes else None
    score = net.set_precision(precision)(x, sigma, labels)
    score.square().mean().backward()
    assert score.dtype == torch.float32 and norms == embeddings == {torch.float32}
    assert {torch.bfloat16, torch.float16} & maps == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    reference = net.set_precision("fp32")(x, sigma, labels)
    error = (score - reference).norm() / reference.norm()
    assert 1e-5 < error < 0.01


@pytest.mark.parametrize("network", SMALL)
def test_half_precision_gives_a_score_in_float32_also_without_the_division_by_sigma(network):
    """The last operation is then a convolution."""
    _, cfg = small(network)
    cfg.model.scale_by_sigma = False
    net = create_model(cfg.model, cfg.data, cfg.sde).eval()
    labels = torch.tensor([0, 3]) if net.num_classes else None
    x, sigma = torch.rand(2, 3, 16, 16), torch.tensor([0.1, 1.0])
    assert {net.set_precision(name)(x, sigma, labels).dtype for name in ("fp32", "bf16", "fp16")} == {torch.float32}


def test_an_unknown_precision_is_named():
    with pytest.raises(InputError, match="precision=fp8"):
        small("vdm_small")[0].set_precision("fp8")


@pytest.mark.parametrize("network", SMALL)
def test_compiles_to_one_graph(network):
    torch._dynamo.reset()
    net = with_published_weights(network)
    x, sigma = torch.rand(2, 3, 16, 16), torch.tensor([0.1, 1.0])
    labels = torch.tensor([3, -1]) if net.num_classes else None
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(x, sigma, labels)
    assert torch.allclose(compiled, net(x, sigma, labels), rtol=1e-4, atol=1e-4)
    compiled.sum().backward()

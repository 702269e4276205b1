import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from errors import InputError
from models import create_model
from models.adm import ADM
from models.ddpmpp import DDPMpp

GOLDEN = Path(__file__).parent / "golden"
SMALL = {
    "ddpmpp_small": lambda: DDPMpp(16, 3, nf=32, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[8]),
    "adm_small": lambda: ADM(16, 3, 10, model_channels=32, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8]),
}


def published_tensor(name, shape):
    """The weight that tests/golden's numbers were computed with: generated from its published name."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.tensor(values * (0.5 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1))


def with_published_weights(network):
    """``network`` in its small form; our parameters come in the published order."""
    manifest = json.loads((GOLDEN / f"{network}.manifest.json").read_text())
    net = SMALL[network]().eval()
    assert sum(p.numel() for p in net.parameters()) == manifest["parameters"]
    if network == "ddpmpp_small":
        frequencies = net.get_parameter("fourier.frequencies")
        frequencies.data.copy_(published_tensor("all_modules.0.W", frequencies.shape))
    trainable = [p for p in net.parameters() if p.requires_grad]
    for p, name in zip(trainable, manifest["trainable_in_order"], strict=True):
        values = published_tensor(name, manifest["state_dict"][name])
        p.data.copy_(values.T if name.endswith(".W") else values)  # published attention maps are W[in, out]
    return net


@pytest.mark.parametrize("network", SMALL)
def test_small_networks_compute_what_the_published_ones_do(network):
    net = with_published_weights(network)
    golden = np.load(GOLDEN / f"{network}.npz")
    x, sigma, labels = (torch.tensor(golden[key]) for key in ("x", "sigma", "labels"))
    score = net(x, sigma, labels if net.num_classes else None).detach().numpy()
    assert np.abs(score - golden["score"]).max() <= 2e-6 * np.abs(golden["score"]).max()
    for image, reference in zip(score, golden["score"], strict=True):
        assert np.linalg.norm(image - reference) <= 2e-6 * np.linalg.norm(reference)


@pytest.mark.parametrize("network", SMALL)
def test_a_fresh_network_starts_at_zero_and_scales_by_sigma(network):
    torch.manual_seed(0)
    net = SMALL[network]().eval()
    x, sigma = torch.rand(4, 3, 16, 16), torch.tensor([0.01, 0.1, 1.0, 5.0])
    assert (net(x, sigma) * sigma.reshape(-1, 1, 1, 1)).abs().max() < 1e-3
    nn.init.normal_(net.conv_out.weight)
    scaled = net(x, sigma)
    net.scale_by_sigma = False
    unscaled = net(x, sigma)
    assert unscaled.abs().max() > 1
    assert torch.allclose(scaled * sigma.reshape(-1, 1, 1, 1), unscaled, rtol=1e-6)


def test_the_null_label_is_no_label_and_class_zero_is_a_class():
    net = with_published_weights("adm_small")
    x, sigma = torch.rand(3, 3, 16, 16), torch.full((3,), 0.5)
    none = net(x, sigma)
    assert torch.allclose(net(x, sigma, torch.tensor([-1, -1, -1])), none, atol=1e-5)
    assert (net(x, sigma, torch.tensor([0, 0, 0])) - none).abs().max() > 1e-3


def test_networks_without_classes_refuse_labels():
    x, sigma, labels = torch.rand(2, 3, 16, 16), torch.ones(2), torch.tensor([0, 1])
    for net in (SMALL["ddpmpp_small"](), ADM(16, 3, 0, model_channels=16, channel_mult=[1], num_blocks=1)):
        with pytest.raises(InputError, match="classes"):
            net(x, sigma, labels)


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
        ({"name": "adm", "model_channels": 36, "channel_mult": [4], "num_blocks": 1}, {}, "144 channels"),
    ],
)
def test_bad_models_are_named(model, data, message):
    with pytest.raises(InputError, match=message):
        create_model(model, DATA | data)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (4, 24)])
def test_any_number_of_channels_and_any_divisible_size(channels, size):
    data = DATA | {"image_size": size, "num_channels": channels}
    x, sigma = torch.rand(2, channels, size, size), torch.tensor([0.1, 1.0])
    for model in (
        {"name": "ddpmpp", "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [size // 2]},
        {"name": "adm", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [size]},
    ):
        assert create_model(model, data)(x, sigma).shape == x.shape

"""A network in a single file, as docs/contributing.md says: trained, resumed, loaded, sampled, evaluated, exported."""

import copy

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from torch import Tensor, nn

from models import Network, create, load_pretrained
from models.export import export
from models.layers import Block, full_precision, group_norm, one_hot
from models.options import Width
from tests.conftest import tiny_config
from tests.extending.conftest import DIGITS
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = torch.device("cpu")


class Residual(Block):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, 1e-6)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.conv(torch.nn.functional.silu(self.norm(x)) + embedding[:, :, None, None])


class Small(Network):
    """A network with classes, and with constants of all kinds: buffers, stored or not, and a frozen parameter."""

    def __init__(
        self, data_shape: tuple[int, ...], num_classes: int = 0, *, sigma_max: float, channels: Width = 8
    ) -> None:
        super().__init__(data_shape, num_classes)
        num_channels, height, width = data_shape
        self.register_buffer("scale", torch.tensor(1.0 / sigma_max))
        self.register_buffer("seen", torch.tensor(3))
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.place = nn.Parameter(torch.full((channels, height, width), 0.5), requires_grad=False)
        self.embed = nn.Linear(1 + num_classes, channels)
        self.conv_in = nn.Conv2d(num_channels, channels, 3, padding=1)
        self.block = Residual(channels)
        self.conv_out = nn.Conv2d(channels, num_channels, 3, padding=1)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        features = [sigma[:, None].log() * self.scale]
        if labels is not None:
            features.append(one_hot(labels, self.num_classes).to(sigma.dtype))
        with full_precision(x):
            embedding = self.embed(torch.cat(features, 1))
        return self.one * self.conv_out(self.block(self.conv_in(x) + self.place, embedding))


ENTRIES = [(create.NETWORKS, "small", Small)]
CONFIGS = [("model/small.yaml", None, """\
# A small convolutional network, with classes
defaults:
  - /base/model@_here_
  - _self_

name: small
channels: 8  # channels of each layer
""")]  # fmt: skip
CHOSEN = [*DIGITS, "model=small"]


def config(*overrides):
    """The configuration that ``model=small`` gives."""
    cfg = tiny_config("training.snapshot_sampling=false", *overrides)
    with open_dict(cfg):
        shared = {key: cfg.model[key] for key in ("parametrization", "scale_by_sigma", "sigma_data", "ema_rate")}
        cfg.model = {"name": "small", "channels": 8, **shared}
    return cfg


def test_a_network_in_one_file(extended, tmp_path):
    run = extended.train_and_resume(*CHOSEN)
    first, _ = load_pretrained(run, 1)
    net, cfg = load_pretrained(run)
    assert type(net.network) is Small and (cfg.model.name, cfg.model.channels) == ("small", 8)
    assert net.data_shape == (1, 8, 8) and net.num_classes == 10
    assert net.network.seen == 3 and net.network.seen.dtype == torch.int64
    assert net.network.scale == pytest.approx(0.2)
    assert not torch.equal(first.network.conv_in.weight, net.network.conv_in.weight)
    stored = torch.load(run / "checkpoints/checkpoint_2.pth", weights_only=True)
    trained = [name for name, p in Small((1, 8, 8), 10, sigma_max=5.0).named_parameters() if p.requires_grad]
    for name, average in zip(trained, stored["ema"]["shadow_params"], strict=True):
        assert torch.equal(net.network.get_parameter(name), average)

    export(run, tmp_path / "small.safetensors", "safetensors")
    samples = [extended.draw("label=[3,4]", load_dir=path) for path in ("RUN", "small.safetensors")]
    assert samples[0].shape == (6, 8, 8, 1) and np.array_equal(*samples)
    results = extended.measure()
    assert all(2 < results[name]["value"] < 20 for name in ("bpd", "elbo"))
    with pytest.raises(InputError, match=r"RUN: the published code has no network like model.name=small: use --format"):
        export(run, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_options_of_a_network_are_those_of_its_constructor(extended, monkeypatch):
    train = ("run_train.py", *CHOSEN, "hydra.run.dir=RUN", "training.snapshot_sampling=false", "training.n_iters=2")
    assert extended.refuse(*train, "model.chanels=8") == "model.chanels: no such option; did you mean model.channels?"
    too_few = "model.channels=0: need an integer, at least 1, at most 8192"
    assert extended.refuse(*train, "model.channels=0") == too_few
    assert "model=smal: known are adm, ddpmpp, mlp, small, vdm; did you mean small?" in extended.refuse(
        *train, "model=smal"
    )
    extended.succeed(*train)
    assert "model.channels=4, but the run in" in extended.refuse(*train, "model.channels=4")
    extended.edit("channels: 8", "channels: 0")
    assert too_few in extended.refuse("run_vis.py", "load_dir=RUN") and too_few in extended.refuse(
        *train[:1], "resume=RUN"
    )
    extended.check_options(monkeypatch, "train", "model.channels=8  channels of each layer (an integer, at least 1")


def test_a_checkpoint_that_does_not_fit_is_refused(registered, tmp_path):
    train(config(), tmp_path, Distributed(CPU))
    path = tmp_path / "checkpoints/checkpoint_1.pth"
    stored = torch.load(path, weights_only=True)
    for change, message in [
        (lambda c: c["model"].pop("scale"), "has no scale"),
        (lambda c: c["model"].update(scale=torch.zeros(2)), r"scale is \(2,\), the network wants \(\)"),
        (lambda c: c["ema"]["shadow_params"].pop(), "holds 9 tensors, the network has 10"),
        (lambda c: c["model"]["place"].fill_(torch.nan), "place holds values that are not finite"),
    ]:
        changed = copy.deepcopy(stored)
        change(changed)
        torch.save(changed, path)
        with pytest.raises(InputError, match=message):
            load_pretrained(tmp_path)

"""A network in a single file, as docs/contributing.md says: trained, resumed, loaded, sampled, evaluated, exported."""

import copy
import json

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from torch import Tensor, nn

from evaluation.evaluate import evaluate
from evaluation.generate import ImageSampler, generate_batches
from models import Network, create, load_pretrained
from models.export import export
from models.layers import Block, full_precision, group_norm, one_hot
from tests.conftest import composed, tiny_config
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
        self, data_shape: tuple[int, ...], num_classes: int = 0, *, sigma_max: float, channels: int = 8
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


@pytest.fixture
def registered(monkeypatch):
    """The entry in ``models/create.py``."""
    monkeypatch.setitem(create.NETWORKS, "small", Small)


def config(*overrides, channels=8):
    """The configuration that ``model=small`` gives with a file configs/model/small.yaml."""
    cfg = tiny_config("training.snapshot_sampling=false", *overrides)
    with open_dict(cfg):
        shared = {key: cfg.model[key] for key in ("parametrization", "scale_by_sigma", "sigma_data", "ema_rate")}
        cfg.model = {"name": "small", "channels": channels, **shared}
    return cfg


def test_a_network_in_one_file(registered, tmp_path):
    run = tmp_path / "run"
    train(config(), run, Distributed(CPU))
    first, cfg = load_pretrained(run)
    assert type(first.network) is Small and (cfg.model.name, cfg.model.channels) == ("small", 8)
    assert first.data_shape == (1, 8, 8) and first.num_classes == 10
    assert first.network.seen == 3 and first.network.seen.dtype == torch.int64
    assert first.network.scale == pytest.approx(0.2)
    stored = torch.load(run / "checkpoints/checkpoint_1.pth", weights_only=True)
    trained = [name for name, p in Small((1, 8, 8), 10, sigma_max=5.0).named_parameters() if p.requires_grad]
    for name, average in zip(trained, stored["ema"]["shadow_params"], strict=True):
        assert torch.equal(first.network.get_parameter(name), average)

    train(config("training.n_iters=4"), run, Distributed(CPU))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    second, _ = load_pretrained(run)
    assert not torch.equal(first.network.conv_in.weight, second.network.conv_in.weight)

    export(run, tmp_path / "small.safetensors", "safetensors")
    draw = ["sampling.method=multistep", "sampling.steps=2", "device=cpu", "label=[3,4]"]
    samples = []
    for load_dir in (run, tmp_path / "small.safetensors"):
        sampler = ImageSampler(composed(*draw, f"load_dir={load_dir}", name="vis"), CPU)
        ((_, batch),) = generate_batches(sampler, [0], 6, Distributed(CPU))
        assert batch.pixels.shape == (6, 8, 8, 1) and batch.labels.tolist() == [3, 4] * 3
        samples.append(batch.pixels)
    assert np.array_equal(*samples)

    measured = ["metrics=[bpd,elbo]", "eval.images=6", "metrics.bpd.rtol=1e-2", "metrics.bpd.atol=1e-2"]
    measured += ["metrics.elbo.num_times=4", "device=cpu", f"load_dir={run}"]
    evaluate(composed(*measured, f"dataroot={tmp_path}", name="eval"), tmp_path / "eval", Distributed(CPU))
    results = json.loads((tmp_path / "eval/results.json").read_text())["metrics"]
    for name in ("bpd", "elbo"):
        bits = np.load(tmp_path / f"eval/{name}.npz")["bits"]
        assert bits.shape == (6,) and results[name]["value"] == pytest.approx(bits.mean())
        assert 2 < results[name]["value"] < 20

    with pytest.raises(InputError, match=r"run: the published code has no network like model.name=small: use --format"):
        export(run, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_options_of_a_network_are_those_of_its_constructor(registered, tmp_path):
    cfg = config()
    with open_dict(cfg):
        cfg.model.chanels = 8
    with pytest.raises(InputError, match=r"model.chanels: no such option; did you mean (model\.)?channels\?"):
        train(cfg, tmp_path / "run", Distributed(CPU))
    assert not (tmp_path / "run").exists()


def test_another_width_is_another_run(registered, tmp_path):
    train(config(), tmp_path, Distributed(CPU))
    with pytest.raises(InputError, match=r"model\.channels=4, but the run in"):
        train(config(channels=4), tmp_path, Distributed(CPU))


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

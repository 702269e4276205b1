"""A network of one's own, added as docs/contributing.md says: trained, resumed, loaded, drawn from, exported."""

import copy
import json

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from torch import Tensor, nn

from evaluation.generate import ImageSampler, generate_batches
from models import create, load_pretrained
from models.export import export
from models.layers import Block, ScoreNetwork, divide_by_sigma, full_precision, group_norm
from tests.conftest import composed, tiny_config
from training.loop import train
from utils import schema
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


class Small(ScoreNetwork):
    """What the steps of docs/contributing.md ask for, with constants of all kinds."""

    def __init__(
        self,
        image_size: int,
        num_channels: int,
        *,
        num_classes: int,
        sigma_max: float,
        channels: int = 8,
        scale_by_sigma: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.scale_by_sigma = num_classes, scale_by_sigma
        self.register_buffer("scale", torch.tensor(1.0 / sigma_max))
        self.register_buffer("seen", torch.tensor(3))
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.place = nn.Parameter(torch.full((channels, image_size, image_size), 0.5), requires_grad=False)
        self.embed = nn.Linear(1 + num_classes, channels)
        self.conv_in = nn.Conv2d(num_channels, channels, 3, padding=1)
        self.block = Residual(channels)
        self.conv_out = nn.Conv2d(channels, num_channels, 3, padding=1)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        none = torch.zeros(len(x), self.num_classes)
        asked = none if labels is None else nn.functional.one_hot(labels.clamp(min=0), self.num_classes).float()
        asked = asked if labels is None else asked * (labels >= 0)[:, None]
        with full_precision(x):
            embedding = self.embed(torch.cat([sigma[:, None].log() * self.scale, asked], 1))
        raw = self.one * self.conv_out(self.block(self.conv_in(x) + self.place, embedding))
        return divide_by_sigma(raw, sigma) if self.scale_by_sigma else raw


@pytest.fixture
def registered(monkeypatch):
    """The two entries that contributing.md asks for."""
    monkeypatch.setitem(create.NETWORKS, "small", Small)
    monkeypatch.setitem(schema.NETWORKS, "small", {"channels": schema.WIDTH})


def config(*overrides):
    cfg = tiny_config("training.snapshot_sampling=false", *overrides)
    with open_dict(cfg):
        cfg.model = {"name": "small", "channels": 8, "scale_by_sigma": True, "ema_rate": 0.9999}
    return cfg


def test_a_network_of_ones_own(registered, tmp_path):
    run = tmp_path / "run"
    train(config(), run, Distributed(CPU))
    first, cfg = load_pretrained(run)
    assert type(first) is Small and (cfg.model.name, cfg.model.channels) == ("small", 8)
    assert first.seen == 3 and first.seen.dtype == torch.int64 and first.scale == pytest.approx(0.2)
    stored = torch.load(run / "checkpoints/checkpoint_1.pth", weights_only=True)
    trained = [name for name, p in Small(8, 1, num_classes=10, sigma_max=5).named_parameters() if p.requires_grad]
    for name, average in zip(trained, stored["ema"]["shadow_params"], strict=True):
        assert torch.equal(first.get_parameter(name), average)

    train(config("training.n_iters=4"), run, Distributed(CPU))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    second, _ = load_pretrained(run)
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)

    draw = ["sampling.method=multistep", "sampling.steps=2", "device=cpu", "label=[3,4]"]
    for load_dir in (run, tmp_path / "small.safetensors"):
        if load_dir.suffix:
            export(run, load_dir, "safetensors")
        artist = ImageSampler(composed(*draw, f"load_dir={load_dir}", name="vis"), CPU)
        ((_, drawn),) = generate_batches(artist, [0], 6, [CPU])
        assert drawn.pixels.shape == (6, 8, 8, 1) and drawn.labels.tolist() == [3, 4] * 3
        if load_dir == run:
            before = copy.deepcopy(drawn.pixels)
    assert np.array_equal(drawn.pixels, before)

    with pytest.raises(InputError, match=r"run: the published code has no network like model.name=small: use --format"):
        export(run, tmp_path / "published")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "small.safetensors"]


def test_a_checkpoint_that_does_not_fit_a_network_of_ones_own_is_refused(registered, tmp_path):
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

"""A parametrization in a single file: trained, resumed, loaded, sampled, evaluated, exported."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from torch import Tensor

from evaluation.evaluate import evaluate
from evaluation.generate import ImageSampler, generate_batches
from models import load_pretrained, parametrization
from models.export import export
from models.parametrization import Parametrization, expand
from tests.conftest import composed, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ZeroAtFaces(Parametrization):
    """A score that vanishes at the faces of the cube, as that of the reflected process does: F 4x(1 - x) / sigma."""

    def __call__(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return raw * 4.0 * x * (1.0 - x) / expand(sigma, x)


@pytest.fixture
def registered(monkeypatch):
    """The entry in ``models/parametrization.py``."""
    monkeypatch.setitem(parametrization.PARAMETRIZATIONS, "faces", ZeroAtFaces)


def config(*overrides, chosen="faces"):
    return tiny_config(f"model.parametrization={chosen}", "training.snapshot_sampling=false", *overrides)


def test_a_parametrization_in_one_file(registered, tmp_path):
    run = tmp_path / "run"
    train(config("optim.lr=1e-2"), run, Distributed(CPU))
    first, cfg = load_pretrained(run)
    assert first.parametrization == ZeroAtFaces() and cfg.model.parametrization == "faces"

    train(config("optim.lr=1e-2", "training.n_iters=4"), run, Distributed(CPU))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    net, _ = load_pretrained(run)
    x = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 8, 8)
    sizes = net(x, torch.full((3,), 0.1)).abs().amax(dim=(1, 2, 3))
    assert sizes[0] == sizes[2] == 0 and sizes[1] > 0

    export(run, tmp_path / "faces.safetensors", "safetensors")
    draw = ["sampling.method=multistep", "sampling.steps=2", "device=cpu", "label=[3,4]"]
    samples = []
    for load_dir in (run, tmp_path / "faces.safetensors"):
        sampler = ImageSampler(composed(*draw, f"load_dir={load_dir}", name="vis"), CPU)
        ((_, batch),) = generate_batches(sampler, [0], 6, Distributed(CPU))
        assert batch.pixels.shape == (6, 8, 8, 1)
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

    with pytest.raises(InputError, match=r"the published code has no model\.parametrization=faces: use --format"):
        export(run, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_another_parametrization_is_another_run(registered, tmp_path):
    train(config(), tmp_path, Distributed(CPU))
    with pytest.raises(InputError, match=r"model\.parametrization=output, but the run in"):
        train(config(chosen="output"), tmp_path, Distributed(CPU))


def test_a_run_without_the_key_has_the_published_parametrization(tmp_path):
    cfg = config(chosen="output")
    with open_dict(cfg):
        del cfg.model["parametrization"], cfg.model["sigma_data"]
    train(cfg, tmp_path, Distributed(CPU))
    net, loaded = load_pretrained(tmp_path)
    assert net.parametrization == parametrization.OutputParametrization(scale_by_sigma=True)
    assert loaded.model.parametrization == "output"
    train(config("training.n_iters=3", chosen="output"), tmp_path, Distributed(CPU))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3

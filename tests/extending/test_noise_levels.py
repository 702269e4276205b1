"""A distribution of noise levels in a single file, as docs/contributing.md says: trained, resumed, loaded, sampled."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import training.loop
from evaluation.generate import ImageSampler, generate_batches
from losses import noise_levels
from losses.noise_levels import ByQuantile
from models.io.config import load_config
from sde import Process
from tests.conftest import assert_same, composed, read, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class UniformBelowPrior(ByQuantile):
    """Times uniform up to where the process reaches its prior: above, there is nothing to learn."""

    process: Process

    def quantile(self, u):
        top = self.process.time(torch.tensor(self.process.prior_sigma)).item()
        return top * u, torch.full_like(u, 1.0 / top)


@pytest.fixture
def registered(monkeypatch):
    """The entry in ``losses/noise_levels.py``."""
    create = lambda process, training: UniformBelowPrior(process)  # noqa: E731
    monkeypatch.setitem(noise_levels.NOISE_LEVELS, "below_prior", create)


def config(*overrides):
    return tiny_config("training.noise_levels=below_prior", "training.batch_size=100", *overrides)


def test_noise_levels_in_one_file(registered, tmp_path, monkeypatch):
    honest, times = training.loop.score_error, []

    def loss(net, process, x0, t, *rest, **options):
        times.append(t)
        return honest(net, process, x0, t, *rest, **options)

    monkeypatch.setattr(training.loop, "score_error", loss)
    train(config("training.n_iters=4"), tmp_path / "whole", Distributed(CPU))
    seen = torch.cat(times)
    top = np.log(1.5 / 0.01) / np.log(500)
    assert seen.max() < top and seen.max() > 0.97 * top and seen.mean().item() == pytest.approx(top / 2, rel=0.1)

    run = tmp_path / "run"
    train(config("training.n_iters=2"), run, Distributed(CPU))
    train(config("training.n_iters=4"), run, Distributed(CPU))
    paths = [folder / "checkpoints-meta/checkpoint.pth" for folder in (tmp_path / "whole", run)]
    assert_same(read(paths[0]), read(paths[1]))
    assert load_config(run).training.noise_levels == "below_prior"
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    quarters = np.array([entry["loss_by_sigma"] for entry in entries], float)
    assert quarters.shape == (4, 4) and np.isfinite(quarters).all(), "each quartile has some of the hundred images"

    draw = ["sampling.method=multistep", "sampling.steps=2", "device=cpu", f"load_dir={run}"]
    ((_, batch),) = generate_batches(ImageSampler(composed(*draw, name="vis"), CPU), [0], 6, Distributed(CPU))
    assert batch.pixels.shape == (6, 8, 8, 1)


def test_without_the_entry_the_name_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"training\.noise_levels=below_prior"):
        train(config(), tmp_path / "run", Distributed(CPU))
    assert not (tmp_path / "run").exists()

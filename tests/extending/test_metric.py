"""A metric of one's own: a class, a line in the registry, and the work of run_eval.py with it, resumed after a stop.

The metric is the mean squared error of the denoised images at one noise level.
"""

import json
from typing import Annotated

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from pydantic import Field

from evaluation.bpd import DatasetMetric
from evaluation.evaluate import evaluate
from evaluation.metric import Result
from evaluation.registry import METRICS
from tests.conftest import composed, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.seeds import Stream, image_generators

ALONE = Distributed(torch.device("cpu"))


class DenoisingError(DatasetMetric):
    """Mean squared error of the denoised images at the noise level ``sigma``."""

    fail_at = -1  # first image of the batch in which the test interrupts it

    def __init__(self, inputs, *, sigma: Annotated[float, Field(gt=0)]):
        super().__init__(inputs, "denoising_error", num_steps=1)
        self.sigma = sigma

    def __call__(self, images, on_step):
        if images.start == self.fail_at:
            raise KeyboardInterrupt
        x0 = self.normalize(images)
        generators = image_generators(self.seed, images, self.device, Stream.PROBE)
        noise = torch.stack([torch.randn(x0.shape[1:], generator=generator) for generator in generators])
        x = (x0 + self.sigma * noise).clamp(0, 1)
        denoised = x + self.sigma**2 * self.score_fn(images)(x, torch.full((len(x),), self.sigma))
        on_step()
        return {"squared_error": (denoised - x0).square().flatten(1).mean(1).detach().numpy()}

    def protocol(self):
        return {"sigma": self.sigma}

    def result(self):
        errors = self.rows()["squared_error"]
        error = float(errors.std(ddof=1) / len(errors) ** 0.5)
        return {self.name: Result(float(errors.mean()), error, {"error_is": "standard error", **self.protocol()})}


def test_a_new_metric_is_computed_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "denoising_error", DenoisingError)
    train(tiny_config("training.snapshot_sampling=false"), tmp_path / "run", ALONE)
    options = [f"load_dir={tmp_path / 'run'}", "metrics=[elbo]", "eval.images=25", "eval.batch_size=10", "device=cpu"]

    def results(name):
        cfg = composed(*options, "metrics.elbo.num_times=2", f"dataroot={tmp_path}", name="eval")
        with open_dict(cfg):
            cfg.metrics.denoising_error = {"sigma": 0.2}  # what configs/metrics/denoising_error.yaml would say
        (tmp_path / name).mkdir(exist_ok=True)
        evaluate(cfg, tmp_path / name, ALONE)
        return json.loads((tmp_path / name / "results.json").read_text())["metrics"]

    whole = results("whole")
    errors = np.load(tmp_path / "whole/denoising_error.npz")["squared_error"]
    assert errors.shape == (25,) and 0.001 < errors.mean() < 1
    assert whole["denoising_error"]["value"] == pytest.approx(errors.mean())
    assert whole["denoising_error"]["sigma"] == 0.2 and whole["denoising_error"]["error"] > 0
    assert list(whole) == ["elbo", "denoising_error"]

    monkeypatch.setattr(DenoisingError, "fail_at", 20)
    with pytest.raises(KeyboardInterrupt):
        results("parts")
    parts = tmp_path / "parts/.denoising_error"
    assert sorted(path.name for path in parts.iterdir()) == ["0.npz", "10.npz"]
    before = (tmp_path / "parts/elbo.npz").stat().st_mtime_ns
    monkeypatch.setattr(DenoisingError, "fail_at", 0)  # the first batch is not computed again
    assert results("parts") == whole
    assert (tmp_path / "parts/elbo.npz").stat().st_mtime_ns == before and not parts.exists()

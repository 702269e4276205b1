"""A metric of one's own: a class, a line in the registry, and the work of run_eval.py with it, resumed after a stop.

The metric is the mean squared error of the denoised images at one noise level.
"""

import json

import numpy as np
import pytest
import torch
from omegaconf import open_dict

from evaluation.bpd import DatasetMetric
from evaluation.evaluate import evaluate
from evaluation.metric import Result
from evaluation.registry import METRICS
from tests.conftest import ROOT, composed, tiny_config
from tests.extending.conftest import ADM, DIGITS
from training.loop import train
from utils.distributed import Distributed
from utils.options import Positive
from utils.seeds import Stream, image_generators

ALONE = Distributed(torch.device("cpu"))


class DenoisingError(DatasetMetric):
    """Mean squared error of the denoised images at the noise level ``sigma``."""

    fail_at = -1  # first image of the batch in which the test interrupts it

    def __init__(self, inputs, *, sigma: Positive):
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


ENTRIES = [(METRICS, "denoising_error", DenoisingError)]
CONFIGS = [("metrics/denoising_error.yaml", None, """\
# Mean squared error of the denoised images
denoising_error:
  sigma: 0.2  # noise level
""")]  # fmt: skip
MEASURE = ["load_dir=RUN", "metrics=[elbo,denoising_error]", "metrics.elbo.num_times=2", "eval.images=25"]
MEASURE += ["eval.batch_size=10", "device=cpu"]


def test_a_metric_in_one_file(extended):
    extended.train_and_resume(*DIGITS, *ADM)
    extended.succeed("run_eval.py", *MEASURE, "hydra.run.dir=whole")
    folder = extended.folder / "whole"
    results = json.loads((folder / "results.json").read_text())["metrics"]
    errors = np.load(folder / "denoising_error.npz")["squared_error"]
    assert errors.shape == (25,) and 0.001 < errors.mean() < 1
    assert list(results) == ["elbo", "denoising_error"]
    assert results["denoising_error"]["value"] == pytest.approx(errors.mean())
    assert results["denoising_error"]["sigma"] == 0.2 and results["denoising_error"]["error"] > 0
    extended.succeed("run_eval.py", *MEASURE, "metrics.denoising_error.sigma=0.1", "hydra.run.dir=other")
    other = json.loads((extended.folder / "other/results.json").read_text())["metrics"]
    assert other["denoising_error"]["value"] != results["denoising_error"]["value"]


def test_its_options_are_checked(extended, monkeypatch):
    earlier = f"load_dir={ROOT}/tests/golden/earlier_run/run"
    name = "metrics.denoising_error"
    for wrong, message in [
        (f"{name}.sigm=1", f"{name}.sigm: no such option; did you mean {name}.sigma?"),
        (f"{name}.sigma=0", f"{name}.sigma=0: need a number, more than 0"),
        ("metrics=[denoising_eror]", "did you mean denoising_error?"),
    ]:
        assert message in extended.refuse("run_eval.py", *MEASURE, earlier, wrong)
    extended.check_options(monkeypatch, "eval", f"{name}.sigma=0.2  noise level (a number, more than 0)")


def test_it_is_resumed_after_a_stop(registered, tmp_path, monkeypatch):
    train(tiny_config("training.snapshot_sampling=false"), tmp_path / "run", ALONE)

    def results(name):
        cfg = composed(*MEASURE[2:], "metrics=[elbo]", f"load_dir={tmp_path}/run", f"dataroot={tmp_path}", name="eval")
        with open_dict(cfg):
            cfg.metrics.denoising_error = {"sigma": 0.2}
        (tmp_path / name).mkdir(exist_ok=True)
        evaluate(cfg, tmp_path / name, ALONE)
        return json.loads((tmp_path / name / "results.json").read_text())["metrics"]

    whole = results("whole")
    monkeypatch.setattr(DenoisingError, "fail_at", 20)
    with pytest.raises(KeyboardInterrupt):
        results("parts")
    parts = tmp_path / "parts/.denoising_error"
    assert sorted(path.name for path in parts.iterdir()) == ["0.npz", "10.npz"]
    before = (tmp_path / "parts/elbo.npz").stat().st_mtime_ns
    monkeypatch.setattr(DenoisingError, "fail_at", 0)  # the first batch is not computed again
    assert results("parts") == whole
    assert (tmp_path / "parts/elbo.npz").stat().st_mtime_ns == before and not parts.exists()

"""The plain VE process and log-normal noise levels through training, resuming, sampling, evaluation and export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import load_pretrained
from models.export import export
from models.io.config import load_config
from sde import VE, create_process
from tests.conftest import assert_same, metrics, read, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = Distributed(torch.device("cpu"))
VE_RUN = ["sde=ve", "training.noise_levels=log_normal", "sampling.method=heun", "sampling.boundary=dynamic"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ve") / "run"
    train(tiny_config(*VE_RUN, "training.n_iters=4"), folder, CPU)
    return folder


def test_a_run_resumes_exactly_and_loads_with_its_process(run, tmp_path):
    train(tiny_config(*VE_RUN), tmp_path, CPU)
    train(tiny_config(*VE_RUN, "training.n_iters=4"), tmp_path, CPU)
    paths = [folder / "checkpoints-meta/checkpoint.pth" for folder in (run, tmp_path)]
    assert_same(read(paths[0]), read(paths[1]))
    assert np.load(run / "samples/iter_4/sample_0.npy").shape == (20, 8, 8, 1)
    net, cfg = load_pretrained(run)
    assert create_process(cfg.sde) == VE(0.01, 50, 1000)
    assert net(torch.randn(2, 1, 8, 8) * 50, torch.full((2,), 50.0)).isfinite().all()


def test_the_options_reach_the_loss(run, tmp_path):
    train(tiny_config("sde=ve"), tmp_path, CPU)
    assert metrics(run)[0]["loss"] != metrics(tmp_path)[0]["loss"]
    assert load_config(run).training.noise_levels == "log_normal"


def test_another_process_is_another_run(run):
    with pytest.raises(InputError, match=r"sde\.name=reflected_ve, but the run in .* has ve"):
        train(tiny_config("sde=ve", "sde.name=reflected_ve"), run, CPU)
    with pytest.raises(InputError, match=r"sampling\.boundary=reflect does not fit a process that has no bounds"):
        train(tiny_config(*VE_RUN, "sampling.boundary=reflect"), run, CPU)


def test_samples_and_likelihoods(run, script, tmp_path):
    drawn = {}
    for boundary in ("null", "none", "clip", "dynamic"):
        options = [f"sampling.boundary={boundary}", "sampling.method=multistep", "sampling.steps=4", "label=3", "w=1"]
        told = script(
            "run_vis.py",
            f"load_dir={run}",
            *options,
            "eval.batch_size=4",
            "device=cpu",
            f"hydra.run.dir=draw_{boundary}",
        )
        assert told.returncode == 0, told.stderr
        drawn[boundary] = np.load(tmp_path / f"draw_{boundary}" / "images/samples_0.npz")["samples"]
    assert np.array_equal(drawn["null"], drawn["none"])
    # A network that has hardly learnt leaves the noise: without thresholds, and with static ones, each pixel saturates.
    for boundary, saturated in (("null", True), ("clip", True), ("dynamic", False)):
        assert (np.isin(drawn[boundary], (0, 255)).mean() > 0.9) == saturated, boundary
    quick = ["eval.images=2", "metrics.bpd.rtol=0.1", "metrics.bpd.atol=0.1", "metrics.elbo.num_times=2"]
    told = script("run_eval.py", f"load_dir={run}", *quick, "device=cpu", "hydra.run.dir=evaluated")
    assert told.returncode == 0, told.stderr
    results = json.loads((tmp_path / "evaluated/results.json").read_text())
    assert "normal at sigma_max=50" in json.dumps(results)
    told = script("run_vis.py", f"load_dir={run}", "sampling.boundary=reflect", "device=cpu")
    assert told.returncode == 1 and "sampling.boundary=reflect does not fit a process that has no bounds" in told.stderr


def test_the_published_layout_has_the_reflected_process_only(run, tmp_path):
    with pytest.raises(InputError, match=r"sde\.name=ve: the published code has only the reflected process"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(run, tmp_path / "out.safetensors", "safetensors")
    assert load_pretrained(tmp_path / "out.safetensors")[1].sde.name == "ve"

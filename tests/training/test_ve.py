"""The plain VE process and log-normal noise levels through training, resuming, sampling, evaluation and export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import load_pretrained
from models.export import export
from models.io.config import load_config
from sampling import create_sampler
from sampling.draw import draw_samples
from sampling.images import share_outside
from sde import VE, create_process
from tests.conftest import ROOT, assert_same, composed, metrics, read, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = Distributed(torch.device("cpu"))
REFLECTED_RUN = ROOT / "tests/golden/reference_run"
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


@pytest.mark.slow(20)
def test_the_share_of_values_that_are_clipped_is_reported(run, script, tmp_path):
    options = [f"load_dir={run}", "sampling.method=multistep", "sampling.steps=4", "device=cpu"]
    net, cfg = load_pretrained(run)
    process = create_process(cfg.sde)
    sampler = create_sampler(composed(*options, name="vis").sampling, process)
    labels = torch.tensor([3, 3, 3, 3, 3, 3])
    x = draw_samples(net, process, sampler, (1, 8, 8), range(6), 0, labels).samples
    outside = ((x < 0) | (x > 1)).float().mean((1, 2, 3)).numpy()
    assert 0.5 < outside.mean() < 1 and np.ptp(outside) > 0

    told = script("run_vis.py", *options, "label=3", "eval.batch_size=6", "ngpus=2", "hydra.run.dir=drawn")
    assert told.returncode == 0, told.stderr
    (line,) = (line for line in told.stderr.splitlines() if "clipped" in line)
    assert f"round 0: {100 * outside.mean():.3g} % of the values were outside [0, 1] and are clipped" in line
    np.testing.assert_allclose(np.load(tmp_path / "drawn/images/samples_0.npz")["clipped"], outside, atol=1 / 64)

    options += ["label=3", "metrics=[inception_score]", "metrics.num_images=5", "hydra.run.dir=evaluated"]
    for _ in range(2):  # the second time with the images of the first
        told = script("run_eval.py", *options, "eval.batch_size=3")
        assert told.returncode == 0, told.stderr
        results = json.loads((tmp_path / "evaluated/results.json").read_text())
        assert results["drawn_images"]["clipped_share"] == pytest.approx(outside[:5].mean(), abs=0.01)
        (tmp_path / "evaluated/results.json").unlink()


def test_nothing_is_said_of_clipping_where_nothing_is_clipped(script, tmp_path):
    told = script("run_vis.py", f"load_dir={REFLECTED_RUN}", "sampling.steps=3", "eval.batch_size=2", "device=cpu",
                  "hydra.run.dir=drawn")  # fmt: skip
    assert told.returncode == 0 and "round 0: 2 images" in told.stderr and "clipped" not in told.stderr, told.stderr
    assert "clipped" not in np.load(tmp_path / "drawn/images/samples_0.npz")


def test_the_share_outside_by_hand():
    x = torch.tensor([[0.0, 1.0, 0.5, 0.25], [-1e-6, 1.1, 3.0, 0.5]]).reshape(2, 1, 2, 2)
    assert share_outside(x).tolist() == [0, 0.75]


def test_the_published_layout_has_the_reflected_process_only(run, tmp_path):
    with pytest.raises(InputError, match=r"sde\.name=ve: the published code has only the reflected process"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(run, tmp_path / "out.safetensors", "safetensors")
    assert load_pretrained(tmp_path / "out.safetensors")[1].sde.name == "ve"

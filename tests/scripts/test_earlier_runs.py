"""A run that an earlier version wrote is resumed, drawn from and measured with the numbers that version went on to.

tests/golden/earlier_run holds the run after 3 steps and, made from it by the same version, its checkpoint after 6,
six drawn images, and an evaluation. Each option that has another name now has a value of its own there.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from models.io.config import load_config
from tests.conftest import ROOT, leaves, metrics, read
from utils.old_keys import RENAMED, update_old_keys

EARLIER = ROOT / "tests/golden/earlier_run"
DRAW = ["load_dir=run", "device=cpu", "eval.batch_size=6", "sampling.method=pc", "w=1", "hydra.run.dir=vis"]
MEASURE = [
    "load_dir=run", "metrics=[bpd,elbo,fid,kid,inception_score,precision_recall]", "eval.images=4", "eval.batch_size=4",
    "metrics.elbo.num_times=3", "metrics.elbo.importance_sampling=true", "metrics.bpd.num_probes=2",
    "metrics.bpd.rtol=1e-2", "metrics.bpd.atol=1e-2", "metrics.num_images=20", "metrics.kid.subset_size=10",
    "metrics.kid.subsets=3", "sampling.method=multistep", "sampling.steps=3", "hydra.run.dir=eval", "device=auto",
    # Options with which this version does what that one did: no correction of the score at the faces.
    "sampling.face_width=0", "sampling.rtol=1e-6", "sampling.atol=1e-6",
]  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """Make a folder with the run as it was after 3 steps."""
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    (tmp_path / "run/checkpoints-meta").mkdir()
    shutil.copy(EARLIER / "run/checkpoints/checkpoint_1.pth", tmp_path / "run/checkpoints-meta/checkpoint.pth")
    return tmp_path


def pixels(path):
    return np.load(path)["samples"].astype(int)


def values(results):
    return {name: metric["value"] for name, metric in results["metrics"].items()}


def test_options_of_the_run_have_their_present_names(place):
    options = load_config(place / "run").training
    assert (options.grad_accum_steps, options.activation_checkpointing) == (2, True)
    assert not {"accumulate", "recompute_activations"} & set(options)


def test_it_is_resumed(place, script):
    resumed = script("run_train.py", "resume=run", "training.n_iters=6")
    assert resumed.returncode == 0 and "resuming at step 3" in resumed.stderr, resumed.stderr
    start, expected = read(EARLIER / "run/checkpoints/checkpoint_1.pth"), read(EARLIER / "resumed/checkpoint_2.pth")
    found = read(place / "run/checkpoints/checkpoint_2.pth")
    assert found["step"] == expected["step"] == 6
    for part in ("model", "ema"):
        pairs = list(zip(leaves(found[part]), leaves(expected[part]), leaves(start[part]), strict=True))
        tensors = [pair for pair in pairs if isinstance(pair[0], torch.Tensor)]
        assert max(abs(after - before).max() for _, after, before in tensors) > 1e-4
        for ours, theirs, _ in tensors:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    for ours, theirs in zip(metrics(place / "run")[3:], metrics(EARLIER / "resumed")[3:], strict=True):
        for key in ("step", "loss", "grad_norm", "lr"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    written = OmegaConf.load(place / "run/.hydra/config.yaml").training
    assert (written.grad_accum_steps, written.activation_checkpointing) == (2, True)
    assert not {"accumulate", "recompute_activations"} & set(written)


def test_it_is_drawn_from_and_the_drawing_goes_on(place, script):
    drawn = script("run_vis.py", *DRAW)
    assert drawn.returncode == 0, drawn.stderr
    ours, theirs = place / "vis/images/samples_0.npz", EARLIER / "drawn/images/samples_0.npz"
    assert abs(pixels(ours) - pixels(theirs)).max() <= 1
    assert np.array_equal(np.load(ours)["labels"], np.load(theirs)["labels"])

    shutil.rmtree(place / "vis")
    shutil.copytree(EARLIER / "drawn", place / "vis")
    continued = script("run_vis.py", *DRAW, "eval.rounds=2")
    assert continued.returncode == 0 and "1 of 2 rounds to draw" in continued.stderr, continued.stderr
    assert ours.read_bytes() == theirs.read_bytes() and pixels(place / "vis/images/samples_1.npz").shape == (6, 8, 8, 1)
    refused = script("run_vis.py", *DRAW, "w=2")
    assert refused.returncode == 1 and "made with w=1, not 2" in refused.stderr, refused.stderr


@pytest.mark.slow(10)
def test_it_is_measured_and_the_evaluation_goes_on(place, script):
    earlier = json.loads((EARLIER / "measured/results.json").read_text())
    measured = script("run_eval.py", *MEASURE)
    assert measured.returncode == 0, measured.stderr
    found = json.loads((place / "eval/results.json").read_text())
    ours, theirs = values(found), values(earlier)
    for name in ("bpd", "elbo"):
        assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=1e-4)
    # multistep keeps its history in the cube now, where a coordinate crosses a face
    assert ours.pop("recall") == pytest.approx(theirs.pop("recall"), abs=0.002)  # two neighbours of 1,438
    assert len(ours) == 4 and ours == pytest.approx(theirs, rel=1e-3)

    shutil.rmtree(place / "eval")
    shutil.copytree(EARLIER / "measured", place / "eval")
    (place / "eval/results.json").unlink()
    refused = script("run_eval.py", *MEASURE, "metrics.elbo.num_times=4")
    assert refused.returncode == 1 and "made with metrics.elbo.num_times=3, not 4" in refused.stderr, refused.stderr
    continued = script("run_eval.py", *MEASURE)
    assert continued.returncode == 0, continued.stderr
    again = json.loads((place / "eval/results.json").read_text())
    assert values(again) == pytest.approx(values(earlier), rel=1e-4)
    for name in ("bpd.npz", "elbo.npz", "images/samples_0.npz"):
        assert (place / "eval" / name).read_bytes() == (EARLIER / "measured" / name).read_bytes(), name
    written = OmegaConf.load(place / "eval/eval.yaml").metrics
    assert (written.num_images, written.elbo.num_times, written.bpd.num_probes) == (20, 3, 2)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_that_is_typed_is_refused_with_its_present_name(place, script, old):
    name = "run_train.py" if old.startswith("training") else "run_eval.py"
    load = [] if old.startswith("training") else ["load_dir=run", "metrics=[bpd,elbo]"]
    for typed in (f"{old}=2", f"+{old}=2"):
        refused = script(name, *load, typed)
        assert refused.returncode == 1, refused.stderr
        assert refused.stderr.splitlines() == [f"{old}: no such option; it is now {RENAMED[old]}"]


def test_both_names_of_an_option_are_refused_as_before():
    cfg = {"training": {"accumulate": 2, "grad_accum_steps": 3, "log_freq": 5}, "seed": 0, "metrics": {"fid": {}}}
    assert update_old_keys(cfg) == cfg
    del cfg["training"]["grad_accum_steps"]
    assert update_old_keys(cfg)["training"] == {"grad_accum_steps": 2, "log_freq": 5}
    assert "accumulate" in cfg["training"]


def test_values_that_changed_are_those_of_an_earlier_version_only():
    added = {"percentile": 0.995, "face_width": 0.0, "nfe": None, "sigmas": None, "eta": 0}
    assert update_old_keys({"sampling": {"boundary": "reflect"}})["sampling"] == {"boundary": None, **added}
    assert update_old_keys({"sampling": {"boundary": "clip"}})["sampling"] == {"boundary": "clip", **added}
    now = {"sampling": {"boundary": "reflect", **added, "percentile": 0.9, "face_width": 0.1}, "sde": {"name": "ve"}}
    assert update_old_keys(now) == now

"""The section guidance of run_vis.py and run_eval.py: drawn, resumed, recorded, and what does not fit is refused."""

import hashlib
import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import tiny_config
from training.loop import train
from utils.distributed import Distributed

DRAW = ["load_dir=RUN", "device=cpu", "eval.batch_size=4", "sampling.method=multistep", "sampling.steps=3"]
RUNS = {
    "RUN": ["training.n_iters=20", "training.snapshot_freq=10", "optim.lr=0.01", "optim.warmup=0", "model.ema_rate=0"],
    "PLAIN": ["data.classes=false"],
    "NARROW": ["sde.sigma_max=2"],
    "VE": ["sde=ve"],
    "SHAPE": ["data=fake", "data.image_size=16", "data.classes=true", "data.num_classes=10"],
    "CLASSES": ["data=fake", "data.image_size=8", "data.num_channels=1", "data.classes=true", "data.num_classes=5"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guidance")
    for name, options in RUNS.items():
        cfg = tiny_config("training.snapshot_sampling=false", "training.eval_freq=20", "training.log_freq=20", *options)
        train(cfg, folder / name, Distributed(torch.device("cpu")))
    return folder


@pytest.fixture
def draw(scripts, place):
    """Return a function that draws to a folder and returns the samples as numbers."""

    def run(out, *args):
        result = scripts(place, "run_vis.py", *DRAW, f"hydra.run.dir={out}", *args)
        assert result.returncode == 0, result.stderr
        return np.load(place / out / "images/samples_0.npz")["samples"].astype(int), result.stderr

    return run


@pytest.mark.slow(12)
def test_guidance_is_drawn_recorded_and_resumed(place, draw, scripts):
    plain, _ = draw("plain", "w=30", "label=3")
    clamped, said = draw("clamped", "w=30", "label=3", "guidance.clamp=hull")
    assert np.abs(plain - clamped).max() > 5 and "3 evaluations each" in said
    options = ["w=30", "label=3", "guidance.clamp=hull", "guidance.interval=[0.02,1]", "guidance.dir=RUN"]
    options += ["guidance.eta=0", "guidance.norm_threshold=2", "guidance.momentum=-0.5"]
    weaker, _ = draw("all", *options, "guidance.ckpt=1")
    itself, _ = draw("itself", *options)
    assert np.abs(weaker - itself).max() > 0
    written = OmegaConf.load(place / "itself/images/vis.yaml").guidance
    assert written == {
        "clamp": "hull", "interval": [0.02, 1], "dir": "RUN", "ckpt": 2, "eta": 0, "norm_threshold": 2, "momentum": -0.5
    }  # fmt: skip
    unguided, _ = draw("unguided", "label=3", "guidance.clamp=hull")
    assert np.abs(itself - unguided).max() <= 1, "a network guided away from itself"
    _, said = draw("all", *options, "guidance.ckpt=1", "eval.rounds=2")
    assert "1 of 2 rounds to draw" in said
    other = scripts(place, "run_vis.py", *DRAW, *options, "guidance.ckpt=1", "guidance.eta=1", "hydra.run.dir=all")
    assert other.returncode == 1 and "made with guidance.eta=0, not 1" in other.stderr


def test_a_drawing_of_a_version_without_guidance_is_continued(place, draw, scripts):
    draw("old", "w=1")
    path = place / "old/images/vis.yaml"
    cfg = OmegaConf.load(path)
    del cfg["guidance"]
    OmegaConf.save(cfg, path)
    _, said = draw("old", "w=1", "eval.rounds=2")
    assert "1 of 2 rounds to draw" in said
    OmegaConf.save(cfg, path)
    refused = scripts(place, "run_vis.py", *DRAW, "w=1", "guidance.clamp=hull", "hydra.run.dir=old")
    assert refused.returncode == 1 and "made with guidance.clamp=None, not hull" in refused.stderr


def test_a_network_without_classes_is_guided_by_a_weaker_one(draw):
    options = ["load_dir=PLAIN", "w=2"]
    guided, _ = draw("autoguided", *options, "guidance.dir=PLAIN", "guidance.clamp=hull")
    plain, _ = draw("not_guided", "load_dir=PLAIN", "guidance.clamp=hull")
    assert np.abs(guided - plain).max() <= 1
    with_class, _ = draw("unlabelled_weak", "w=2", "label=1", "guidance.dir=PLAIN")
    assert with_class.shape == (4, 8, 8, 1)


def test_an_evaluation_records_how_its_samples_were_guided(place, scripts):
    options = ["load_dir=RUN", "device=cpu", "metrics=[energy_distance]", "metrics.num_images=6", "eval.batch_size=4"]
    options += ["sampling.method=multistep", "sampling.steps=2", "w=1", "guidance.clamp=hull", "guidance.dir=RUN"]
    options += ["guidance.ckpt=1", "hydra.run.dir=eval"]
    for _ in range(2):
        result = scripts(place, "run_eval.py", *options)
        assert result.returncode == 0, result.stderr
    found = json.loads((place / "eval/results.json").read_text())["drawn_images"]
    digest = hashlib.sha256((place / "RUN/checkpoints/checkpoint_1.pth").read_bytes()).hexdigest()
    assert found["w"] == 1 and found["guidance"] == {
        "clamp": "hull", "interval": None, "dir": "RUN", "ckpt": 1, "eta": 1, "norm_threshold": None, "momentum": 0,
        "sha256": digest,
    }  # fmt: skip
    other = scripts(place, "run_eval.py", *options, "guidance.ckpt=2")
    assert other.returncode == 1 and "eval exists, made with guidance.ckpt=1, not 2" in other.stderr


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["guidance.dir=SHAPE"], "guidance.dir=SHAPE is for data of shape (3, 16, 16), load_dir of (1, 8, 8)"),
        (["guidance.dir=CLASSES"], "guidance.dir=CLASSES has 5 classes, load_dir 10"),
        (["guidance.dir=VE"], "guidance.dir=VE has sde=ve, load_dir=reflected_ve"),
        (["guidance.dir=NARROW"], "guidance.dir=NARROW knows noise from 0.01 to 2, load_dir from 0.01 to 5"),
        (["guidance.dir=gone"], "guidance.dir=gone: gone/.hydra/config.yaml does not exist"),
        (["guidance.dir=RUN", "guidance.ckpt=7"], "has no checkpoint_7.pth: guidance.ckpt can be 1, 2"),
        (["load_dir=PLAIN"], "w=2: this network has no classes to guide by, leave w out, or give guidance.dir"),
        (
            ["guidance.momentum=-0.5", "sampling.method=ode"],
            "guidance.momentum=-0.5 does not go with sampling.method=ode, which repeats steps that are too long",
        ),
        (
            ["guidance.momentum=-0.5", "given=x.npz", "sampling.method=pc"],
            "guidance.momentum=-0.5 does not go with given=x.npz: leave it out",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(place, scripts, typed, message):
    result = scripts(place, "run_vis.py", *DRAW, "w=2", "hydra.run.dir=refused", *typed)
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert result.returncode == 1 and len(lines) == 1 and message in lines[0], lines
    assert not list((place / "refused").glob("*"))

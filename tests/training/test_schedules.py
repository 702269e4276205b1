"""Schedules of the learning rate, and runs whose length is a number of images."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import training.loop
import training.metric_writer
from datasets import Loader
from models.io.config import load_config
from tests.conftest import assert_same, metrics, read, tiny_config
from training.loop import train
from training.optimizer import SCHEDULES, learning_rate
from utils.distributed import Distributed

CPU = Distributed(torch.device("cpu"))
QUICK = ["training.snapshot_sampling=false", "logger=none", "training.snapshot_freq_for_preemption=1"]


@pytest.fixture(autouse=True)
def no_picture_of_losses(monkeypatch):
    monkeypatch.setattr(training.metric_writer, "draw_losses", lambda *_: None)


def trained(run_dir, *overrides):
    train(tiny_config(*QUICK, *overrides), run_dir, CPU)
    return run_dir


def killed_at(step, run_dir, *overrides):
    """Train until ``step`` updates are done and saved, as a kill leaves the run."""
    honest = training.loop.train_step

    def killing(loss_fn, net, state, *rest):
        if state.step == step:
            raise KeyboardInterrupt
        return honest(loss_fn, net, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.loop, "train_step", killing)
        with pytest.raises(KeyboardInterrupt):
            trained(run_dir, *overrides)
    return run_dir


def newest(run_dir):
    return read(run_dir / "checkpoints-meta/checkpoint.pth")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # in units of lr, before updates 0, 9, 10, 35, 60, 85, 109, 110, 400 of 110, of which 10 are the warm-up
        ("constant", [0.1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.1, 1, 1, 0.75, 0.5, 0.25, 0.01, 0, 0]),
        (
            "cosine",
            [0.1, 1, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, math.sin(math.pi / 200) ** 2, 0, 0],
        ),
        ("inverse_sqrt", [0.1, 1, 1, *(math.sqrt(25 / n) for n in (35, 60, 85, 109, 110, 400))]),
    ],
)
def test_schedules_have_their_values(schedule, expected):
    optim = OmegaConf.create({"lr": 0.3, "warmup": 10, "schedule": schedule, "decay_after": 25})
    rates = [learning_rate(optim, step, step, 110) for step in (0, 9, 10, 35, 60, 85, 109, 110, 400)]
    assert rates == pytest.approx([0.3 * factor for factor in expected], abs=1e-12)


def test_a_run_shorter_than_its_warm_up_never_falls():
    for schedule in ("linear", "cosine"):
        optim = OmegaConf.create({"lr": 1.0, "warmup": 10, "schedule": schedule, "decay_after": 1})
        assert [learning_rate(optim, step, step, 5) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("length", ["training.n_iters=5", "training.n_images=37"])
def test_resuming_is_exact_for_every_schedule(tmp_path, schedule, length):
    options = [f"optim.schedule={schedule}", length, "optim.warmup=1", "optim.decay_after=2", "model.dropout=0.1"]
    whole, parts = trained(tmp_path / "whole", *options), killed_at(3, tmp_path / "parts", *options)
    assert newest(parts)["step"] == 3
    trained(parts, *options)
    assert newest(parts)["step"] == 5 and newest(parts)["images"] == 40
    assert_same(*map(newest, (whole, parts)))
    keys = ("step", "loss", "lr", "grad_norm")
    first, second = ([[entry[key] for key in keys] for entry in metrics(run)] for run in (whole, parts))
    assert first == second
    cfg = load_config(whole)
    total = 5 if length == "training.n_iters=5" else 37 / 8
    rates = [learning_rate(cfg.optim, step, step, total) for step in range(5)]
    assert [entry["lr"] for entry in metrics(whole)] == pytest.approx(rates)
    assert (len(set(rates)) == 1) == (schedule == "constant")


def test_another_batch_size_goes_on_at_the_same_number_of_images(tmp_path, monkeypatch):
    seen, honest = [], Loader.indices

    def noted(self, step):
        index = honest(self, step)
        if self.batch_size < 20:  # not the held-out images
            seen.extend(index)
        return index

    options = ["optim.schedule=linear", "training.n_images=64", "optim.warmup=0", "optim.lr=1"]
    whole = trained(tmp_path / "whole", *options)
    run = killed_at(4, tmp_path / "run", *options)
    monkeypatch.setattr(Loader, "indices", noted)
    trained(run, *options, "training.batch_size=16")
    assert newest(run)["step"] == 6 and newest(run)["images"] == newest(whole)["images"] == 64
    assert [entry["step"] for entry in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert [entry["lr"] for entry in metrics(run)] == pytest.approx([1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 2 / 8])
    order = np.random.default_rng([0, 0]).permutation(1438)
    assert np.array_equal(seen, order[32:64])
    trained(run, *options, "training.batch_size=8", "training.n_images=96")  # back to smaller batches
    assert newest(run)["step"] == 10 and np.array_equal(seen, order[32:96])


def test_a_checkpoint_of_an_earlier_version_counts_by_the_batch_size_of_its_run(tmp_path):
    run = trained(tmp_path / "run", "training.n_iters=4")
    for path in (run / "checkpoints-meta").iterdir():
        state = read(path)
        del state["images"]
        torch.save(state, path)
    trained(run, "training.n_images=80", "training.batch_size=16")
    assert (newest(run)["step"], newest(run)["images"]) == (7, 80)
    assert load_config(run).training.n_iters == 7
    before = newest(run)
    trained(run, "training.n_images=80", "training.batch_size=16")  # which it has reached
    assert_same(before, newest(run))

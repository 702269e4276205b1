"""Output of a run: metrics, images, TensorBoard, Weights & Biases, and the summary at its start."""

import importlib.util
import json
import math
import re
import resource
import shutil
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import training.loop
from losses import UniformTime
from sde import ReflectedVE
from tests.conftest import TINY, metrics, tiny_config
from training.loggers import TensorBoard
from training.loop import train
from training.metric_accumulator import MetricAccumulator
from utils.distributed import Distributed
from utils.errors import InputError, UserError
from utils.metrics_file import read_entries

CPU = Distributed(torch.device("cpu"))


def events(run_dir):
    """Read {name: {step: value}} of all scalars in TensorBoard, and the steps of the images."""
    shown = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert all(len(dict(pairs)) == len(pairs) for pairs in scalars.values()), "a step is shown twice"
    return {tag: dict(pairs) for tag, pairs in scalars.items()}, {e.step for e in shown.Images("samples")}


def test_tensorboard_shows_the_metrics_and_samples_each_step_once_also_after_a_kill(tmp_path):
    cfg = tiny_config("training.n_iters=6", "training.snapshot_freq=2")
    train(cfg, tmp_path, CPU)
    before = metrics(tmp_path)
    # As if the run had been killed after step 6, having saved at step 2.
    shutil.copy(tmp_path / "checkpoints/checkpoint_1.pth", tmp_path / "checkpoints-meta/checkpoint.pth")
    train(cfg, tmp_path, CPU)
    entries = metrics(tmp_path)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry["loss"] for entry in entries] == [entry["loss"] for entry in before]
    scalars, pictures = events(tmp_path)
    assert pictures == {2, 4, 6}
    for name in ("loss", "grad_norm", "lr", "images_per_sec", "memory_gib"):
        for entry in entries:
            assert scalars[name][entry["step"]] == pytest.approx(entry[name], rel=1e-6), name
    assert scalars["eval_loss"].keys() == {2, 4, 6}
    for k in range(4):
        assert all(
            entry["loss_by_sigma"][k] == pytest.approx(scalars[f"loss_by_sigma/{k + 1}"][entry["step"]])
            for entry in entries
            if entry["loss_by_sigma"][k] is not None
        )


def test_a_run_killed_before_its_first_checkpoint_leaves_one_history(tmp_path, monkeypatch):
    cfg, honest = tiny_config("training.n_iters=6"), training.loop.train_step

    def killed(objective, net, state, *rest):
        if state.step == 4:
            raise KeyboardInterrupt
        return honest(objective, net, state, *rest)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(training.loop, "train_step", killed)
        train(cfg, tmp_path, CPU)
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 3, 4] and not list(tmp_path.rglob("*.pth"))
    train(cfg, tmp_path, CPU)
    scalars, pictures = events(tmp_path)  # in which no step comes twice
    assert scalars["loss"].keys() == {1, 2, 3, 4, 5, 6} and pictures == {6}


def test_a_full_disk_prints_no_traceback_of_a_thread(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(UserError, match="tensorboard cannot be written: File too large"):
            TensorBoard(tmp_path, 0, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("tensorboard."):
            thread.join(30)
    assert not shown
    other = threading.Thread(target=lambda: 1 / 0)  # of which the traceback is wanted
    other.start()
    other.join()
    assert [args.exc_type for args in shown] == [ZeroDivisionError]


def test_the_loss_by_quarters_of_the_noise_levels():
    sde = ReflectedVE(0.01, 5.0)
    accumulator = MetricAccumulator(CPU, sde, UniformTime())
    t = torch.tensor([0.01, 0.2, 0.3, 0.9, 0.99])
    accumulator.add(1, torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]), sde.sigma(t), torch.tensor(7.0), images=5)
    accumulator.add(2, torch.tensor([5.0]), sde.sigma(t[:1]), torch.tensor(9.0), images=1)
    summary = accumulator.summary()
    assert summary["loss_by_sigma"] == pytest.approx([8 / 3, 3.0, None, 5.0])
    assert summary["loss"] == pytest.approx((16 / 5 + 5) / 2) and summary["grad_norm"] == pytest.approx(8.0)
    assert 0.05 < summary["memory_gib"] < 100


def test_the_loss_is_plotted_at_each_kept_checkpoint(tmp_path):
    train(tiny_config("training.n_iters=2"), tmp_path, CPU)
    first = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    train(tiny_config("training.n_iters=40", "training.snapshot_freq=20"), tmp_path, CPU)
    second = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    assert first.shape == second.shape == (550, 880, 3)
    black, red = (second.sum(2) < 60).sum(), ((second[..., 0] > 180) & (second[..., 1:].max(2) < 80)).sum()
    assert black > 500 and red > 20 and (first != second).any()


def test_damaged_lines_are_not_entries(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n[]\n{"loss": 1}\n{"step": "2"}\n{"step": 2}\n{"step": 3, "lo')
    assert read_entries(path) == [{"step": 1, "loss": 2.0}] and read_entries(tmp_path / "none") == []


def test_a_run_logs_its_summary(tmp_path, caplog):
    caplog.set_level("INFO")
    train(tiny_config("training.grad_accum_steps=2", "precision=bf16"), tmp_path, CPU)
    block = next(message for message in caplog.messages if message.startswith("model "))
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in block.splitlines())
    assert lines["model"] == "adm, 11,929 parameters"
    assert lines["data"] == "digits, 1,438 images 1x8x8 to train on, 359 held out, 10 classes"
    assert re.fullmatch(r"8 images a step, over 1 x cpu \(\d+ threads\), in 2 parts", lines["batch"])
    assert lines["precision"] == "bf16" and lines["steps"].startswith("0 of 2 done; ")
    kept = r"1 checkpoints to keep of [\d.]+ kB, two to resume from of [\d.]+ kB: [\d.]+ kB more, of [\d.,]+ GB free"
    assert re.fullmatch(kept, lines["disk"])
    assert lines["output"] == str(tmp_path) and lines["resume"] == f"python run_train.py resume={tmp_path}"
    assert lines["watch"] == f"tensorboard --logdir {tmp_path}"
    assert any(re.fullmatch(r"first step after \d+\.\d s", message) for message in caplog.messages)


def test_without_a_logger_there_are_the_files_only(tmp_path):
    train(tiny_config("logger=none"), tmp_path, CPU)
    assert not (tmp_path / "tensorboard").exists() and (tmp_path / "loss.png").exists() and len(metrics(tmp_path)) == 2


def test_wandb_resumes_the_same_run(tmp_path):
    tiny = ["logger=wandb", "logger.mode=offline", "logger.project=digits"]
    for steps in (2, 4):
        train(tiny_config(*tiny, f"training.n_iters={steps}"), tmp_path, CPU)
    name = (tmp_path / "wandb_id").read_text()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and {path.name for path in files} == {f"run-{name}.wandb"}
    names = (b"digits", b"eval_loss", b"loss_by_sigma/", b"samples", name.encode())
    for path in files:
        deadline = time.monotonic() + 30  # wandb writes from a process of its own
        while missing := [name for name in names if name not in path.read_bytes()]:
            assert time.monotonic() < deadline, missing
            time.sleep(0.1)


def test_wandb_is_imported_only_when_it_is_chosen(fresh_script, tmp_path, monkeypatch):
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison/wandb.py").write_text("raise SystemExit('imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "poison"))
    assert fresh_script("run_train.py", *TINY, "training.snapshot_sampling=false").returncode == 0


def test_missing_wandb_is_named_before_anything_is_written(tmp_path, monkeypatch):
    honest = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else honest(name, *rest)
    )
    with pytest.raises(InputError, match="logger=wandb needs a package that is not installed: pip install wandb"):
        train(tiny_config("logger=wandb"), tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_wandb_without_an_account_is_one_line(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match=r"^logger=wandb: .*; logger.mode=offline needs no account$"):
        train(tiny_config("logger=wandb"), tmp_path / "run", CPU)


def test_metrics_are_standard_json(tmp_path):
    train(tiny_config(), tmp_path, CPU)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert all(math.isfinite(value) for value in entry.values() if isinstance(value, float))

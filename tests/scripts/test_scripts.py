"""The entry scripts, run as a user runs them."""

import contextlib
import json
import math
import os
import pty
import random
import re
import resource
import signal
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from run_train import check_resume
from tests.conftest import ROOT, TINY, assert_same, environment, metrics, read, wait_for_steps
from utils.devices import choose_device
from utils.errors import InputError


def one(paths):
    (path,) = paths
    return path


def failed_with(result, message):
    """Assert that the script exited non-zero with ``message`` on stderr and no traceback."""
    assert result.returncode != 0, result.stdout
    assert message in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    return True


@pytest.mark.slow(40)
def test_train_sample_resume_sample(script, tmp_path):
    trained = script("run_train.py", *TINY)
    assert trained.returncode == 0, trained.stderr
    run = one((tmp_path / "runs/digits").glob("*/*"))
    assert torch.load(run / "checkpoints/checkpoint_1.pth", weights_only=True)["step"] == 2
    assert "step 2/2" in (run / "logs").read_text()
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "images_per_sec", "eval_loss"} <= set(entries[-1])

    drawn = script(
        "run_vis.py", f"load_dir={run}", "label=3", "w=1", "eval.batch_size=6", "eval.rounds=2", "sampling.steps=4"
    )
    assert drawn.returncode == 0, drawn.stderr
    images = one((tmp_path / "vis").glob("*/*/images"))
    assert str(images.relative_to(tmp_path)) in drawn.stderr
    assert sorted(p.name for p in images.iterdir()) == [
        ".lock",
        *[f"samples_{r}.{e}" for r in (0, 1) for e in ("npz", "png")],
        "vis.yaml",
    ]
    rounds = [np.load(images / f"samples_{r}.npz") for r in (0, 1)]
    assert rounds[0]["samples"].shape == (6, 8, 8, 1) and rounds[0]["samples"].dtype == np.uint8
    assert rounds[0]["labels"].tolist() == [3] * 6
    assert not np.array_equal(rounds[0]["samples"], rounds[1]["samples"])
    assert Image.open(images / "samples_0.png").size == (3 * 42 + 2, 2 * 42 + 2)

    resumed = script("run_train.py", f"resume={run}", "training.n_iters=4", "training.snapshot_freq=2")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step 2" in resumed.stderr
    assert torch.load(run / "checkpoints/checkpoint_2.pth", weights_only=True)["step"] == 4
    assert one((tmp_path / "runs/digits").glob("*/*")) == run

    config = (run / ".hydra/config.yaml").read_bytes()
    inside = script("run_vis.py", f"load_dir={run}", "eval.batch_size=2", "sampling.steps=2", f"hydra.run.dir={run}")
    assert inside.returncode == 0, inside.stderr
    assert (run / ".hydra/config.yaml").read_bytes() == config
    first = script("run_vis.py", f"load_dir={run}", "eval.ckpt=1", "eval.batch_size=2", "hydra.run.dir=chosen")
    assert first.returncode == 0, first.stderr
    assert failed_with(script("run_vis.py", f"load_dir={run}", "hydra.run.dir=chosen"), "chosen/images exists")


@pytest.mark.slow(12)
def test_an_unconditional_ddpmpp_on_colour_images(script, tmp_path):
    overrides = [
        "data=fake", "data.image_size=8", "model.nf=8", "model.ch_mult=[1,2]", "model.num_res_blocks=1",
        "training.n_iters=2", "training.batch_size=4", "eval.batch_size=4", "sampling.steps=2", "device=cpu",
        "hydra.run.dir=run", "training.snapshot_sampling=false",
    ]  # fmt: skip
    assert script("run_train.py", *overrides).returncode == 0
    assert not (tmp_path / "run/samples").exists()
    drawn = script("run_vis.py", "load_dir=run", "eval.batch_size=4", "sampling.steps=2", "hydra.run.dir=drawn")
    assert drawn.returncode == 0, drawn.stderr
    arrays = np.load(tmp_path / "drawn/images/samples_0.npz")
    assert arrays["samples"].shape == (4, 8, 8, 3) and list(arrays) == ["samples"]
    assert failed_with(script("run_vis.py", "load_dir=run", "label=0"), "has no classes")


@pytest.mark.slow(18)
def test_two_runs_started_together_share_no_directory_unless_told_to(fresh_script, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        apart = [pool.submit(fresh_script, "run_train.py", *TINY) for _ in range(2)]
        long = [*TINY, "training.n_iters=400", "hydra.run.dir=shared"]
        together = [pool.submit(fresh_script, "run_train.py", *long) for _ in range(2)]
    assert [run.result().returncode for run in apart] == [0, 0]
    assert len(list(tmp_path.glob("runs/digits/*/*/checkpoints/checkpoint_1.pth"))) == 2

    first, second = sorted((run.result() for run in together), key=lambda result: result.returncode)
    assert first.returncode == 0, first.stderr
    assert failed_with(second, "another process trains there")
    steps = [json.loads(line)["step"] for line in (tmp_path / "shared/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 401))


@pytest.mark.slow(60)
@pytest.mark.parametrize("ngpus", [1, 2])
def test_a_run_killed_at_any_moment_equals_an_uninterrupted_one(script, tmp_path, pytestconfig, ngpus):
    """Kill a run at random moments; a checkpoint every other step puts many kills into the middle of a save."""
    kills, moments = pytestconfig.getoption("kills"), random.Random(ngpus)
    steps = 60 + 40 * kills
    long = [*TINY, f"ngpus={ngpus}", f"training.n_iters={steps}", "training.snapshot_freq=50"]
    long += ["training.snapshot_freq_for_preemption=2", "training.snapshot_sampling=false", "training.step_timeout=60"]
    long += ["training.ema_snapshot_freq=3"]
    command = [sys.executable, str(ROOT / "run_train.py"), *long, "hydra.run.dir=killed"]
    for kill in range(kills):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL, process_group=0)
        wait_for_steps(tmp_path / "killed", 0 if kill == 0 else len(metrics(tmp_path / "killed")), process)
        time.sleep(moments.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before the kill"
        done = (tmp_path / "killed/metrics.jsonl").read_text().count("\n")
        print(f"kill {kill + 1} of {kills} after step {done}, in a save: {bool(list(tmp_path.rglob('.*.tmp')))}")
    for name in ("killed", "whole"):
        assert script("run_train.py", *long, f"hydra.run.dir={name}").returncode == 0
    paths = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.pth")]
    assert len(paths) == 2 + math.ceil(steps / 50)
    for path in paths:
        if path.name != "checkpoint_previous.pth":  # the last save comes again if the kill was just after it
            assert_same(*(read(tmp_path / name / path) for name in ("killed", "whole")))
    averages = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors")]
    assert len(averages) > 30
    assert all(
        (tmp_path / "killed" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes() for path in averages
    )
    assert not list((tmp_path / "killed/ema").glob("before_*"))
    assert [entry["step"] for entry in metrics(tmp_path / "killed")] == list(range(1, steps + 1))


@pytest.mark.slow(20)
def test_a_full_disk_leaves_the_checkpoints(script, tmp_path):
    """Limit the size of files to half a checkpoint."""
    run = [*TINY, "hydra.run.dir=run", "training.snapshot_sampling=false"]
    assert script("run_train.py", *run).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pth")}
    limit = len(before[tmp_path / "run/checkpoints-meta/checkpoint.pth"]) // 2
    command = [sys.executable, str(ROOT / "run_train.py"), *run, "training.n_iters=4"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert failed_with(result, "run/checkpoints/checkpoint_2.pth cannot be saved: ")
    assert "File too large; the checkpoint before it is whole" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.pth")} == before
    assert not list(tmp_path.rglob(".*.tmp"))
    assert script("run_train.py", *run, "training.n_iters=4").returncode == 0
    assert read(tmp_path / "run/checkpoints/checkpoint_2.pth")["step"] == 4


def test_a_terminal_shows_a_progress_bar_and_an_interrupt_ends_it_cleanly(tmp_path):
    command = [sys.executable, str(ROOT / "run_train.py"), *TINY, "training.n_iters=5000", "hydra.run.dir=run"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 160))
    process = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, interrupted = b"", False
    with contextlib.suppress(OSError):  # raised when the process has closed its end
        while chunk := os.read(ours, 4096):
            shown += chunk
            if not interrupted and re.search(rb"/5000 .*step/s.*loss=", shown):
                process.send_signal(signal.SIGINT)
                interrupted = True
    os.close(ours)
    assert process.wait() == 130, shown
    assert interrupted
    assert b"\r\nstopping: finishes the step and saves; Ctrl-C again stops at once\r\n" in shown
    saved = re.fullmatch(rb".*interrupted by SIGINT: saved at step (\d+) in \S*/run\r\n", shown, re.DOTALL)
    state = torch.load(tmp_path / "run/checkpoints-meta/checkpoint.pth", weights_only=True)
    assert state["step"] == int(saved[1])
    assert b"Traceback" not in shown


def interrupt(arguments, folder, when):
    """Run a script, interrupt its processes as a terminal does once ``when``(its pid); return its output."""
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        process_group=0,
    )  # fmt: skip
    while process.poll() is None and not when(process.pid):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    return said.splitlines()


def imports_torch(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return "libtorch" in maps.read()


def has_two_children(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = []
    for child in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            commands.append(Path(f"/proc/{child}/cmdline").read_bytes())
    return sum(b"spawn_main" in command for command in commands) == 2


@pytest.mark.parametrize(
    "arguments", [["run_train.py", *TINY], ["run_vis.py", "load_dir=x"], ["run_eval.py", "load_dir=x"]]
)
def test_an_interrupt_of_the_imports_is_one_line(tmp_path, arguments):
    assert interrupt(arguments, tmp_path, imports_torch) == ["interrupted"]


def test_an_interrupt_of_processes_that_start_is_one_line(tmp_path):
    arguments = ["run_train.py", *TINY, "ngpus=2", "training.n_iters=100000"]
    (line,) = interrupt(arguments, tmp_path, has_two_children)
    assert line in ("interrupted", "interrupted before the first step")


def test_a_failing_job_fails_a_multirun_and_the_others_finish(script, tmp_path):
    sweep = script("run_train.py", "-m", *TINY, "optim.optimizer=SGD,Adam,AdamW", "training.snapshot_sampling=false")
    assert failed_with(sweep, "optim.optimizer=SGD")
    done = sorted(p.parent.parent.name for p in tmp_path.glob("runs/digits/*/*/*/checkpoints/checkpoint_1.pth"))
    assert done == ["1", "2"]


@pytest.mark.parametrize("argument", ["-m", "--multirun", "hydra.mode=MULTIRUN", "hydra.run.dir=elsewhere"])
def test_arguments_that_conflict_with_resume_are_named(tmp_path, argument):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").touch()
    with pytest.raises(InputError, match=f"^{argument} does not go with resume="):
        check_resume([argument, f"resume={tmp_path}"])
    check_resume([f"resume={tmp_path}", "training.n_iters=3"])


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="device=cuda"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")

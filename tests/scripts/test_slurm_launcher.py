"""The Slurm launcher with faked answers of squeue and results of tasks; test_slurm.py submits real jobs."""

import os
import pickle
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from cli import slurm_launcher
from cli.slurm_launcher import SETTLED, SlurmLauncher
from tests.conftest import ROOT


@pytest.fixture
def launcher(tmp_path):
    """Create a launcher whose runs are in ``tmp_path``/NUMBER."""
    made = SlurmLauncher(submitit_folder=str(tmp_path / ".submitit/%j"), max_num_timeout=0)
    made.config = OmegaConf.create(
        {"hydra": {"job": {}, "sweep": {"dir": str(tmp_path), "subdir": "${hydra.job.num}"}}}
    )
    made.hydra_context = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=lambda config, _: config))
    return made


@pytest.fixture
def submitted(tmp_path):
    """Create job 42 of two tasks, which is run 0."""
    folder = tmp_path / ".submitit/42"
    folder.mkdir(parents=True)
    paths = SimpleNamespace(folder=folder, stderr=folder / "42_0_log.err")
    job = SimpleNamespace(job_id="42", num_tasks=2, paths=paths)
    return slurm_launcher._Submitted(job, ["optim.lr=1"], 0, "job 42 optim.lr=1")


def leave(submitted, task, kind, what, time):
    path = submitted.job.paths.folder / f"42_{task}_result.pkl"
    path.write_bytes(pickle.dumps((kind, what)))
    os.utime(path, (time, time))


def poll(launcher, submitted, *states):
    for state in states:
        launcher._update(submitted, state if state is None else {"42": state} if state else {})
    return submitted.outcome, submitted.failure


@pytest.mark.parametrize("name", ["slurm", "submitit_slurm"])
def test_both_names_are_this_launcher(name):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
    assert type(Plugins.instance()._instantiate(cfg.hydra.launcher)) is SlurmLauncher


def test_a_job_is_done_when_all_its_tasks_are(launcher, submitted):
    leave(submitted, 0, "success", "what task 0 returned", 1)
    assert poll(launcher, submitted, "RUNNING") == (None, None)
    leave(submitted, 1, "success", "what task 1 returned", 2)
    assert poll(launcher, submitted, "RUNNING") == ("what task 0 returned", None)


def test_the_reason_is_that_of_the_task_that_failed_first(launcher, submitted, capsys):
    leave(submitted, 0, "error", "process 1 is gone", 20)
    leave(submitted, 1, "error", "Traceback\n  of many lines\nValueError: \x1b[31m\u202eno use\n", 10)
    assert poll(launcher, submitted, "RUNNING", "COMPLETING") == (None, None)
    poll(launcher, submitted, "FAILED")
    assert capsys.readouterr().err == "job 42 optim.lr=1: ValueError:  [31m no use\n"


@pytest.mark.parametrize("state", ["", "CANCELLED", "NODE_FAIL", "COMPLETED", "PREEMPTED"])
def test_a_killed_job_fails_with_the_message_of_slurm_also_in_the_log_of_its_run(
    launcher, submitted, tmp_path, capsys, state
):
    (tmp_path / "0").mkdir()
    (tmp_path / "0/logs").write_text("what the run said\n")
    leave(submitted, 0, "success", "what task 0 returned", 1)
    submitted.job.paths.stderr.write_text("starting\nsrun: error: node2: task 1: Killed\nsrun: Force Terminated\n")
    poll(launcher, submitted, *[state] * SETTLED)
    line = f"job 42 optim.lr=1: ended as {state or 'FORGOTTEN'}: srun: error: node2: task 1: Killed"
    assert capsys.readouterr().err == f"{line}\n"
    first, last = (tmp_path / "0/logs").read_text().splitlines()
    assert first == "what the run said" and last.endswith(f" ERROR {line}")


def test_a_job_that_is_requeued_or_unknown_for_a_moment_is_waited_for(launcher, submitted):
    ended = ["FAILED"] * (SETTLED - 1)
    assert poll(launcher, submitted, *ended, "PENDING", *ended, None, *ended, "COMPLETING", "SIGNALING") == (None, None)


@pytest.mark.parametrize(
    ("answer", "states"),
    [
        ("echo '42_0 RUNNING'; echo '42_1 NODE_FAIL'", {"42_0": "RUNNING", "42_1": "NODE_FAIL"}),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", {}),  # it ended a while ago
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_answers_of_squeue_are_parsed(tmp_path, monkeypatch, answer, states):
    squeue = tmp_path / "squeue"
    wanted = "--noheader --array --states=all --format=%i %T --jobs=42"
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "{wanted}" ] || exit 2\n{answer}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert slurm_launcher._states(["42_0", "42_1"]) == states

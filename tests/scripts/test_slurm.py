"""Jobs of a real Slurm, which .ci/slurm brings up: python -m pytest -m slurm."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY, assert_same, environment, metrics, read, wait_for_steps

pytestmark = pytest.mark.slurm

NEWEST = "checkpoints-meta/checkpoint.pth"
LAUNCHER = [
    "hydra/launcher=slurm",
    "hydra.launcher.partition=debug",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=null",
    "hydra.launcher.timeout_min=1",  # so that USR2, which Slurm sends before the time is up, counts as that
    "hydra.launcher.signal_delay_s=5",
]


def submitted(folder, *arguments):
    command = [sys.executable, ROOT / "run_train.py", "-m", *TINY, *LAUNCHER, "hydra.sweep.dir=sweep", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def job_of(sweep):
    """Return the number of the job that the sweep submitted."""
    (folder,) = (path for path in (sweep / ".submitit").iterdir() if re.fullmatch(r"\d+", path.name))
    return folder.name


def start_again(job):
    """Start a requeued job at once, without the minutes that Slurm lets it wait."""
    deadline = time.monotonic() + 40
    while "JobState=PENDING" not in slurm("scontrol", "show", "job", job):
        assert time.monotonic() < deadline, slurm("scontrol", "show", "job", job)
        time.sleep(0.2)
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")


def test_a_job_at_its_time_limit_and_preempted_equals_an_uninterrupted_one(tmp_path):
    run, options = tmp_path / "sweep/0", ["ngpus=2", "training.n_iters=400"]
    launcher = submitted(tmp_path, *options, "training.log_freq=1")
    wait_for_steps(run, 5, launcher)
    job = job_of(tmp_path / "sweep")
    slurm("scancel", "--signal=USR2", job)  # what Slurm sends before the time is up
    start_again(job)
    wait_for_steps(run, len(metrics(run)) + 5, launcher)
    slurm("scontrol", "requeue", job)  # what Slurm does to a job that is preempted
    start_again(job)
    said = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 0, said

    logs = (run / "logs").read_text()
    steps = [int(step) for step in re.findall(r"interrupted by SIG\w+: saved at step (\d+)", logs)]
    assert len(steps) == 2 and 5 < steps[0] < steps[1] < 400
    assert "interrupted by SIGUSR2" in logs and "interrupted by SIGTERM" in logs
    assert [int(step) for step in re.findall(r"resuming at step (\d+)", logs)] == steps
    assert "over 2 x cpu" in logs
    command = [sys.executable, ROOT / "run_train.py", *TINY, *options, "hydra.run.dir=whole"]
    assert subprocess.run(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL).returncode == 0
    assert_same(read(run / NEWEST), read(tmp_path / "whole" / NEWEST))
    assert [entry["step"] for entry in metrics(run)] == list(range(1, 401))


def test_jobs_that_fail_are_failed_for_slurm_and_the_other_finishes(tmp_path):
    """Submit a bad configuration, a loss that is not finite, and a good run."""
    options = ["optim.lr=-1,1e30,1e-4", "optim.warmup=0", "optim.grad_clip=-1"]
    launcher = submitted(tmp_path, *options, "training.snapshot_sampling=false")
    said = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 1
    reasons = ["optim.lr=-1: need a number", "loss or gradient not finite at step 2"]
    lines = [line for line in said.splitlines() if not line.startswith("submitted job ")]
    assert len(lines) == 3 and lines[-1] == "2 of 3 jobs failed"
    job = re.search(r"submitted job (\d+)_0", said)[1]
    for number, lr in enumerate(("-1", "1e+30")):
        assert sum(line.startswith(f"job {job}_{number} optim.lr={lr}: {reasons[number]}") for line in lines) == 1
    for number, reason in enumerate(reasons):
        shown = slurm("scontrol", "show", "job", f"{job}_{number}")
        assert "JobState=FAILED" in shown and "ExitCode=1:0" in shown
        own = tmp_path / f"sweep/.submitit/{job}_{number}/{job}_{number}_0_log.err"
        for log in (own, tmp_path / f"sweep/{number}/logs"):
            assert reason in log.read_text() and "Traceback" not in log.read_text()
        assert not (tmp_path / f"sweep/{number}/checkpoints").exists()
    deadline = time.monotonic() + 30  # the launcher goes by the results, which are there before Slurm has cleared up
    while "JobState=COMPLETED" not in (shown := slurm("scontrol", "show", "job", f"{job}_2")):
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    assert read(tmp_path / "sweep/2" / NEWEST)["step"] == 2


def test_a_task_that_is_killed_ends_the_job_and_the_launcher_within_a_minute(tmp_path):
    launcher = submitted(tmp_path, "ngpus=2", "training.n_iters=1000000", "training.snapshot_sampling=false")
    wait_for_steps(tmp_path / "sweep/0", 5, launcher)
    job = job_of(tmp_path / "sweep")
    pids = {fields[4]: fields[0] for fields in map(str.split, slurm("scontrol", "listpids", f"{job}.0").splitlines())}
    start = time.monotonic()
    os.kill(int(pids["1"]), signal.SIGKILL)
    said = launcher.communicate(timeout=120)[1]
    assert time.monotonic() - start < 60
    assert launcher.returncode == 1
    reason = "process 0 of 2 cannot continue: process 1 does not answer: it was killed, or its machine is lost"
    assert said.splitlines()[-2:] == [f"job {job}: {reason}", "1 of 1 jobs failed"]
    assert reason in (tmp_path / "sweep/0/logs").read_text()
    own = (tmp_path / f"sweep/.submitit/{job}/{job}_0_log.err").read_text()
    assert reason in own and "task 1: Killed" in own and "successfully" not in own
    assert "JobState=FAILED" in slurm("scontrol", "show", "job", job)

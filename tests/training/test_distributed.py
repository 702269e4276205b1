"""Training in several processes: the same numbers, one writer, and the end of all processes when one fails."""

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from cli.launch import broadcast_run_id, file_rendezvous, local_device, run_distributed, run_under_launcher
from tests.conftest import ROOT, TINY, assert_same, environment, metrics, read, tiny_config, wait_for_steps
from training.loop import train
from training.options import check_train
from utils.distributed import Distributed
from utils.distributed_env import DistributedEnv, detect_launcher
from utils.errors import InputError, TrainingError, UserError
from utils.roll_call import RollCall
from utils.signals import StopSignals

CPU = torch.device("cpu")
NEWEST = "checkpoints-meta/checkpoint.pth"

# Nine images a step do not divide by two; a step of 1e-3 moves the weights; dropout is a process's own.
SHARED = [*TINY, "training.n_iters=20", "training.batch_size=9", "optim.lr=1e-3", "optim.warmup=0", "model.dropout=0"]
LONG = [*TINY, "training.n_iters=1000000", "training.snapshot_sampling=false"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Train a run of SHARED in two processes started here."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, ROOT / "run_train.py", *SHARED, "ngpus=2", "hydra.run.dir=run"]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "over 2 x cpu" in result.stderr and "Warning" not in result.stderr
    return folder / "run"


def started(folder, *arguments):
    """Start a process of run_train.py in ``folder``/run and wait for some steps."""
    command = [sys.executable, ROOT / "run_train.py", *arguments, "hydra.run.dir=run"]
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_steps(folder / "run", 3, process)
    return process


def children(pid):
    """Return the training processes below a process, in the order in which they were started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"spawn_main" in path.with_name("cmdline").read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass  # it has ended
    return sorted(found)


def ended(pids, seconds=30):
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline, f"of {pids} some are still there"
        time.sleep(0.05)
    return True


@pytest.mark.slow(20)
def test_processes_and_parts_change_no_number(together, tmp_path):
    """Compare 20 steps of one process, of two, and of three micro-batches."""
    train(tiny_config(*SHARED), tmp_path / "one", Distributed(CPU))
    train(tiny_config(*SHARED, "training.grad_accum_steps=3"), tmp_path / "parts", Distributed(CPU))
    one, parts, two = metrics(tmp_path / "one"), metrics(tmp_path / "parts"), metrics(together)
    assert one[-1]["eval_loss"] < 0.95 * one[1]["eval_loss"]
    for name, other in (("three parts", parts), ("two processes", two)):
        assert [entry["step"] for entry in other] == list(range(1, 21))
        for key in ("loss", "grad_norm", "eval_loss"):
            pairs = [(a[key], b[key]) for a, b in zip(one, other, strict=True) if key in a or key in b]
            seen = max(abs(a - b) / abs(a) for a, b in pairs)
            print(f"{name}, {key}: largest relative difference from one process {seen:.1e}")
            assert seen < 1e-5


def test_processes_share_the_drawing_and_one_writes(together, tmp_path):
    train(tiny_config(*SHARED), tmp_path, Distributed(CPU))
    files = [
        sorted(re.sub("tfevents.*", "", str(path.relative_to(run))) for path in run.rglob("*.*") if path.name != "logs")
        for run in (together, tmp_path)
    ]
    assert files[0] == files[1]
    two, one = (np.load(run / "samples/iter_20/sample_0.npy").astype(int) for run in (together, tmp_path))
    assert two.shape == one.shape == (20, 8, 8, 1)
    assert np.abs(two - one).max() <= 1


def test_torchrun_trains_the_same_run(together, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [ROOT / "run_train.py", *SHARED]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (run,) = tmp_path.glob("runs/digits/*/*")
    assert_same(read(run / NEWEST), read(together / NEWEST))
    assert not (run / ".rendezvous").exists()


def test_a_launcher_starts_a_sweep_and_one_that_fails_stops_no_other(tmp_path, together):
    """Each run has two processes; the sweep may be started from any folder."""
    command = [sys.executable, ROOT / "run_train.py", "-m", *SHARED, "hydra/launcher=submitit_local"]
    command += ["hydra.launcher.tasks_per_node=2", "optim.optimizer=SGD,Adam", "hydra.sweep.dir=sweep"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode != 0
    assert "optim.optimizer=SGD: known are" in result.stderr
    deadline = time.monotonic() + 60
    while not (tmp_path / "sweep/1" / NEWEST).exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # the other job continues by itself
    assert_same(read(tmp_path / "sweep/1" / NEWEST), read(together / NEWEST))
    assert not (tmp_path / "sweep/0" / NEWEST).exists()
    assert "ERROR optim.optimizer=SGD: known are" in (tmp_path / "sweep/0/logs").read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_a_signal_saves_and_reports_the_interruption(tmp_path, signum, code):
    process = started(tmp_path, *LONG)
    process.send_signal(signum)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    step = read(tmp_path / "run" / NEWEST)["step"]
    assert f"interrupted by {signum.name}: saved at step {step} in " in said
    assert metrics(tmp_path / "run")[-1]["step"] == step
    assert "Traceback" not in said


@pytest.mark.slow(50)
def test_processes_stopped_by_a_signal_resume_exactly(tmp_path):
    process = started(tmp_path, *LONG, "ngpus=2")
    workers = children(process.pid)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert len(workers) == 2 and ended(workers)
    step = read(tmp_path / "run" / NEWEST)["step"]
    for name in ("run", "whole"):
        command = [sys.executable, ROOT / "run_train.py", *LONG, "ngpus=2", f"hydra.run.dir={name}"]
        command += [f"training.n_iters={step + 5}"]
        result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert_same(*(read(tmp_path / name / NEWEST) for name in ("run", "whole")))


@pytest.mark.slow(36)
@pytest.mark.parametrize("victim", ["supervisor", 0, 1])
def test_no_process_outlives_a_killed_one(tmp_path, victim):
    process = started(tmp_path, *LONG, "ngpus=2")
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(process.pid if victim == "supervisor" else workers[victim], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert ended(workers)
    if victim == "supervisor":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 1
        assert said.splitlines()[-1] == f"process {victim} of 2 was killed by SIGKILL"


# What a process may do instead of training; a process of its own imports it by its name.


def _fail_in_the_second(cfg, run_dir, distributed, stop):
    if distributed.rank == 1:
        raise ValueError("of no use\nat all")
    distributed.all_reduce_sum(torch.zeros(1))


def _fail_in_the_first(cfg, run_dir, distributed, stop):
    def act():
        raise InputError("data.root=nowhere is not there")

    distributed.run_on_main(act)


def _hang_in_the_second(cfg, run_dir, distributed, stop):
    if distributed.rank == 1:
        time.sleep(300)
    distributed.all_reduce_sum(torch.zeros(1))


def _leave_in_the_second(cfg, run_dir, distributed, stop):
    if distributed.rank == 1:
        os._exit(7)
    distributed.all_reduce_sum(torch.zeros(1))


def _exchange(cfg, run_dir, distributed, stop):
    rank = distributed.rank
    assert distributed.run_on_main(lambda: [rank, "told"]) == [0, "told"]
    assert distributed.all_reduce_sum(torch.tensor([1.0, rank])).tolist() == [2.0, 1.0]
    assert distributed.all_gather(torch.tensor([rank])).tolist() == [[0], [1]]
    assert distributed.all_reduce_max(5 * rank) == 5
    assert distributed.gather({"rank": rank}) == (None if rank else [{"rank": 0}, {"rank": 1}])
    shares = distributed.gather([len(range(n)[distributed.local_slice(n)]) for n in (1, 2, 9)])
    if rank == 0:
        (run_dir / "shares.json").write_text(json.dumps(shares))
    return 0


def _average_and_note_threads(cfg, run_dir, distributed, stop):
    net = distributed.data_parallel(torch.nn.Linear(1, 1))
    net.of_a_cycle = net
    net(torch.ones(1, 1)).sum().backward()
    assert gloo_threads(), "they have another name"
    atexit.register(lambda: _note_threads(run_dir / f"threads_{distributed.rank}.json"))
    return 0


def _note_threads(path, seconds=5):
    """Write which threads of gloo are here after ``seconds``: one that has ended is still listed for a while."""
    deadline = time.monotonic() + seconds
    while (names := gloo_threads()) and time.monotonic() < deadline:
        time.sleep(0.05)
    path.write_text(json.dumps(names))


def gloo_threads():
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended
            names.append(path.read_text().strip())
    return [name for name in names if "gloo" in name]


def run_two(work, folder, step_timeout=600):
    """Run ``work`` in two processes started here."""
    run_distributed(work, OmegaConf.create({"debug": False, "device": "cpu", "ngpus": 2}), folder, 60, step_timeout)


def test_collective_operations(tmp_path):
    run_two(_exchange, tmp_path)
    assert json.loads((tmp_path / "shares.json").read_text()) == [[0, 1, 4], [1, 1, 5]]


def test_no_thread_of_gloo_is_left_when_the_interpreter_ends(tmp_path):
    """One that then still released a tensor had the process of a completed run killed by SIGABRT, on loaded cores."""
    run_two(_average_and_note_threads, tmp_path)
    assert [json.loads((tmp_path / f"threads_{rank}.json").read_text()) for rank in range(2)] == [[], []]


@pytest.mark.parametrize(
    ("act", "message", "traceback"),
    [
        (_fail_in_the_second, "^process 1 of 2 failed: ValueError: of no use$", True),
        (_fail_in_the_first, "^data.root=nowhere is not there$", False),
        (_hang_in_the_second, "^process 0 of 2 failed: .*[Tt]imed out", True),
        (_leave_in_the_second, "^process 1 of 2 ended with exit status 7$", False),
    ],
)
def test_a_process_that_fails_ends_all_with_its_message(tmp_path, capfd, monkeypatch, act, message, traceback):
    monkeypatch.setattr("cli.launch.GRACE", 2.0)
    start = time.monotonic()
    with pytest.raises(UserError, match=message):
        run_two(act, tmp_path, step_timeout=3)
    assert time.monotonic() - start < 60
    said = capfd.readouterr().err
    assert ("Traceback" in said and act.__name__ in said) == traceback


def test_processes_that_do_not_start_are_named():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("arrived/2", "")
    with pytest.raises(TrainingError, match=r"processes 1, 3 of 4 did not start within startup_timeout=0.2"):
        Distributed(CPU, 0, 4, store, startup_timeout=0.2)


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    cfg = tiny_config("training.batch_size=5", "training.grad_accum_steps=2")
    check_train(cfg, processes=2)
    with pytest.raises(InputError, match=r"training.batch_size=5: less than an image for each of 3 processes x"):
        check_train(cfg, processes=3)


SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("variables", "env"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, ("torchrun", 1, 4, 0, 4)),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, ("torchrun", 1, 4, 0, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, ("torchrun", 0, 1, 0, 1)),
        (SRUN, ("srun", 5, 8, 1, 8)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1,12", "SLURM_NODEID": "2"}, ("srun", 5, 8, 1, 2)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1,12", "SLURM_NODEID": "3"}, ("srun", 5, 8, 1, 1)),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x3),1,12", "SLURM_NODEID": "4"}, ("srun", 5, 8, 1, 12)),
        (
            {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "3", "SUBMITIT_LOCAL_LOCALID": "1"},
            ("submitit", 1, 3, 1, 3),
        ),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, None),  # starts its own by ngpus
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}, None),  # the batch script, outside srun
    ],
)
def test_rank_and_world_size_of_each_launcher(monkeypatch, variables, env):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "SUBMITIT_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = detect_launcher()
    assert (found and (found.launcher, found.rank, found.world_size, found.local_rank, found.local_size)) == env


@pytest.mark.parametrize(("tasks_here", "threads"), [("2", 4), ("8", 1)])
def test_processes_of_a_machine_share_its_cores(monkeypatch, tmp_path, tasks_here, threads):
    """Eight processes on four machines of eight cores each do not take one core each."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": tasks_here}.items():
        monkeypatch.setenv(name, value)
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr("cli.launch._launcher_store", lambda: taken.append("met"))  # it is after that
    with pytest.raises(AttributeError):
        run_under_launcher(train, tiny_config(), tmp_path, 60, 60, StopSignals(), detect_launcher())
    assert taken == [threads, "met"]


def stand_at(monkeypatch, rank, size):
    """Set the environment variables that torchrun gives a process."""
    for key, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}.items():
        monkeypatch.setenv(key, str(value))


def test_torchrun_may_start_one_process_of_any_script(script, monkeypatch):
    stand_at(monkeypatch, 0, 1)
    for name in ("run_vis.py", "run_eval.py"):
        assert "nowhere" in script(name, "load_dir=nowhere").stderr  # it gets as far as that


def _calls(store, server="process 0"):
    return [RollCall(store.clone(), rank, 3, server) for rank in range(3)]


def test_a_lost_process_is_named(monkeypatch):
    monkeypatch.setattr("utils.roll_call.ANSWER_TIME", 2.0)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, second, third = _calls(store)
    with first, third:  # the second was killed
        assert first.find_failed() == "process 1 does not answer: it was killed, or its machine is lost"
    second.report_failure("ValueError: of no use", False)
    third.report_failure("process 1 is gone", False)  # a consequence
    assert first.find_failed() == "process 1 failed: ValueError: of no use"


def test_all_processes_answer_when_none_is_lost():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    first, second, third = _calls(store)
    with first, second, third:
        assert first.find_failed() == ""


def test_a_process_that_fails_under_a_launcher_tells_the_others_and_the_log(monkeypatch, tmp_path, caplog):
    """A programming error has its traceback; the message of bad input is unchanged."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("present/1", "")  # as the other one answers
    monkeypatch.setattr("cli.launch._launcher_store", lambda: store)
    monkeypatch.setattr("cli.launch.Distributed", lambda *_: None)

    def failing(error):
        def act(*_):
            raise error

        return act

    for error, kind, message in (
        (ValueError("of no use\nat all"), TrainingError, "process 0 of 2 failed: ValueError: of no use"),
        (InputError("data.root=nowhere is not there"), InputError, "data.root=nowhere is not there"),
    ):
        caplog.clear()
        store.delete_key("failure")
        env = DistributedEnv("torchrun", 0, 2, 0, 2)
        with pytest.raises(kind) as caught:
            run_under_launcher(failing(error), tiny_config(), tmp_path, 60, 60, StopSignals(), env)
        assert str(caught.value) == message
        assert RollCall(store, 1, 2, "").find_failed() == f"process 0 failed: {message}"
        assert ("Traceback" in caplog.text) == (kind is TrainingError)


def test_the_server_of_a_store_that_is_gone_is_named():
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    call = RollCall(dist.TCPStore("127.0.0.1", server.port, is_master=False), 1, 2, "process 0")
    with call:
        time.sleep(0.3)  # until its thread is connected
        del server
        assert call.find_failed().startswith("process 0, which serves the store, does not answer")
    call.report_failure("and nobody hears it", False)


def test_a_requeued_job_keeps_its_directory_and_is_another_attempt(monkeypatch):
    variables = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    for name, value in {**variables, "SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    first = detect_launcher()
    assert broadcast_run_id("a stamp of this process") == "job-42.0"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert broadcast_run_id("another stamp") == "job-42.0"
    assert detect_launcher().attempt != first.attempt


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for visible, index in ((4, 1), (1, 0)):  # all of the machine's, or the process's own alone
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=visible: n)
        assert local_device(detect_launcher(), torch.device("cuda")) == torch.device("cuda", index)
    assert local_device(detect_launcher(), CPU) == CPU


def test_the_rendezvous_waits_for_the_store_of_its_attempt(monkeypatch, tmp_path):
    """The rendezvous file of a killed attempt is ignored."""
    (tmp_path / ".rendezvous").write_text('["42/0", "127.0.0.1", 1]')
    with pytest.raises(TrainingError, match=r"process 0 did not start within startup_timeout=0.5 seconds"):
        file_rendezvous(DistributedEnv("srun", 1, 2, 1, 2, "42", "42/1"), tmp_path / ".rendezvous", timeout=0.5)
    first = file_rendezvous(DistributedEnv("srun", 0, 2, 0, 2, "42", "42/1"), tmp_path / ".rendezvous", timeout=5)
    second = file_rendezvous(DistributedEnv("srun", 1, 2, 1, 2, "42", "42/1"), tmp_path / ".rendezvous", timeout=5)
    first.set("key", "value")
    second.set_timeout(timedelta(seconds=5))
    assert second.get("key") == b"value"

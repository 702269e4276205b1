"""How the processes of a run come to be: alone, started here, or started by torchrun or Slurm."""

import functools
import json
import logging
import logging.config
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import multiprocessing as mp

from utils import interrupts
from utils.devices import share_cores
from utils.distributed import Distributed
from utils.distributed_env import DistributedEnv, detect_launcher
from utils.errors import TrainingError, UserError
from utils.roll_call import RollCall
from utils.signals import StopSignals

log = logging.getLogger(__name__)

GRACE = 10.0  # seconds that the other processes have to end after the first one did

Train = Callable[[DictConfig, Path, Distributed, StopSignals], int]


def local_device(env: DistributedEnv, device: torch.device) -> torch.device:
    """The device of a env: a GPU for each on its machine, whether it sees all of them or its own."""
    if device.type == "cpu":
        return device
    return torch.device("cuda", env.local_rank % torch.cuda.device_count())


def broadcast_run_id(stamp: str) -> str:
    """The ``stamp`` of process 0 in every process of a launcher, or what else names their common start."""
    env = detect_launcher()
    if env is None or env.world_size == 1:
        return stamp
    if env.launcher != "torchrun":
        return f"job-{env.job}"
    store = _torchrun_store()
    if env.rank == 0:
        store.set("stamp", stamp)
    return store.get("stamp").decode()


def train_under_launcher(
    train: Train, cfg: DictConfig, run_dir: Path, env: DistributedEnv, device: torch.device
) -> None:
    """Train as one of the processes that a launcher started.

    Raises:
        SystemExit: if a signal asked to stop.
        UserError: and what else ``train`` raises.
    """
    if env.rank > 0:
        logging.getLogger().setLevel(logging.ERROR)
    share_cores(1, env.local_size)
    with StopSignals() as stop, ExitStack() as open_here:
        startup = cfg.training.startup_timeout
        if env.world_size == 1:
            store = None
        elif env.launcher == "torchrun":
            store = _torchrun_store()
            store.set_timeout(timedelta(seconds=startup))
        else:
            store = file_rendezvous(env, run_dir / ".rendezvous", startup)
        distributed = Distributed(device, env.rank, env.world_size, store, startup, cfg.training.step_timeout)
        if env.rank == 0:
            (run_dir / ".rendezvous").unlink(missing_ok=True)
        roll_call = None
        if store is not None:
            server = "torchrun on the machine of process 0" if env.launcher == "torchrun" else "process 0"
            roll_call = open_here.enter_context(RollCall(store, env.rank, env.world_size, server))
        try:
            signum = train(cfg, run_dir, distributed, stop)
            distributed.shutdown()
        except Exception as error:
            explained = _explained(error, roll_call, env)
            if explained is error:
                raise
            raise explained from error
    if signum:
        stop.reraise(signum, env.rank)


def _explained(error: Exception, roll_call: RollCall | None, env: DistributedEnv) -> Exception:
    """What to raise instead of ``error``: a clean error of this process as it is, or one line on what happened."""
    clean, who = isinstance(error, UserError | OSError), f"process {env.rank} of {env.world_size}"
    if not clean and roll_call is not None and (lost := roll_call.lost()):
        return TrainingError(f"{who} cannot go on: {lost}")
    if not clean:
        log.error("%s:\n%s", who, "".join(traceback.format_exception(error)))
        error = TrainingError(f"{who} failed: {type(error).__name__}: {error}".splitlines()[0])
    if roll_call is not None:
        roll_call.failed(str(error))
    return error


def train_local(
    train: Train, cfg: DictConfig, run_dir: Path, devices: list[torch.device], logs: dict[str, Any]
) -> None:
    """Train in this process, or in one for each of several devices, started here.

    Args:
        logs: for ``logging.config``, of the process that writes.

    Raises:
        SystemExit: if a signal asked to stop.
        UserError: if a process fails, whose traceback has then been logged.
    """
    with StopSignals() as stop:
        if len(devices) == 1:
            share_cores(1)
            signum = train(cfg, run_dir, Distributed(devices[0]), stop)
        else:
            signum = _Group(train, cfg, run_dir, devices, logs).watch(stop)
    if signum:
        stop.reraise(signum)


@functools.cache
def _torchrun_store() -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT, kept open: without torchrun's own, process 0 serves it."""
    return next(dist.rendezvous("env://"))[0]


def file_rendezvous(env: DistributedEnv, path: Path, timeout: float) -> dist.TCPStore:
    """A store that process 0 serves on a free port, which it leaves in a file that all can read."""
    if env.rank == 0:
        alone_on_a_machine = int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) == 1
        host = "127.0.0.1" if alone_on_a_machine else socket.gethostname()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps([env.attempt, host, store.port]))
        os.replace(temporary, path)
        return store
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ValueError, dist.DistError):  # or it is of an attempt that was killed
            attempt, host, port = json.loads(path.read_text())
            if attempt == env.attempt:
                return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        time.sleep(0.1)
    raise TrainingError(f"process 0 did not start within training.startup_timeout={timeout:g} seconds: no {path}")


class _Group:
    """Processes started here, and a supervisor that trains nothing itself."""

    def __init__(
        self, train: Train, cfg: DictConfig, run_dir: Path, devices: list[torch.device], logs: dict[str, Any]
    ) -> None:
        self.size = len(devices)
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = (train, cfg, run_dir, devices, self.store.port, logs)
        with interrupts.block_sigint():
            # Torch has the children interrupted when this process is killed.
            started = mp.start_processes(_train_as, shared, self.size, join=False, start_method="spawn")
        self.processes = started.processes

    def watch(self, stop: StopSignals) -> int:
        """Wait for the end, passing signals on; the number of the signal that stopped the run, or 0.

        Raises:
            UserError: if a process failed; the others are then killed.
        """
        stop.defer()
        told, deadline = False, float("inf")
        try:
            while alive := [process for process in self.processes if process.is_alive()]:
                connection.wait([process.sentinel for process in alive], timeout=0.2)
                if stop.received and not told:
                    told = True
                    for process in alive:  # a terminal sends them SIGINT itself, and a second one would be heeded
                        os.kill(process.pid, signal.SIGTERM)
                ended_badly = any(process.exitcode for process in self.processes)
                if ended_badly and deadline == float("inf"):
                    deadline = time.monotonic() + GRACE
                if time.monotonic() > deadline:
                    break
            exit_codes = [process.exitcode for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return self._outcome(exit_codes, stop.received)

    def _outcome(self, exit_codes: list[int | None], signum: int) -> int:
        reports = {}
        for rank in range(self.size):
            if self.store.check([f"report/{rank}"]):
                reports[rank] = json.loads(self.store.get(f"report/{rank}"))
        for rank, code in enumerate(exit_codes):
            if code and rank not in reports and not signum:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
                raise UserError(f"process {rank} of {self.size} {how}")
        failures = sorted((report["time"], rank) for rank, report in reports.items() if "message" in report)
        if failures:
            rank = failures[0][1]  # the first: what the others met is that it was gone
            if reports[rank]["traceback"]:
                log.error("process %d of %d:\n%s", rank, self.size, reports[rank]["traceback"])
            raise UserError(reports[rank]["message"])
        signum = max([signum, *(report["stopped"] for report in reports.values())])
        if signum and not any("early" not in report for report in reports.values()):
            log.info("interrupted before the first step")
        return signum


def _train_as(
    rank: int,
    train: Train,
    cfg: DictConfig,
    run_dir: Path,
    devices: list[torch.device],
    port: int,
    logs: dict[str, Any],
) -> None:
    """What process ``rank`` of a group does; its last word to the supervisor goes to the store."""
    size, device = len(devices), devices[rank]
    if rank == 0:
        logging.config.dictConfig(logs)
    else:
        logging.basicConfig(level=logging.ERROR, format="%(message)s")
    share_cores(size)
    startup = cfg.training.startup_timeout
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=startup))
    try:
        with StopSignals() as stop:
            interrupts.unblock_sigint()
            distributed = Distributed(device, rank, size, store, startup, cfg.training.step_timeout)
            report: dict[str, Any] = {"stopped": train(cfg, run_dir, distributed, stop)}
            distributed.shutdown()
    except KeyboardInterrupt:  # before the first step: the others need not wait
        store.set(f"report/{rank}", json.dumps({"time": time.time(), "stopped": int(signal.SIGINT), "early": True}))
        raise SystemExit(128 + signal.SIGINT) from None
    except (UserError, OSError) as error:
        report = {"message": str(error), "traceback": traceback.format_exc() if cfg.debug else ""}
    except Exception as error:
        message = f"process {rank} of {size} failed: {type(error).__name__}: {error}"
        report = {"message": message.splitlines()[0], "traceback": traceback.format_exc()}
    store.set(f"report/{rank}", json.dumps({"time": time.time(), **report}))
    raise SystemExit("stopped" not in report)

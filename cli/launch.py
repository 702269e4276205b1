"""Execution of a script's work in one process, in ``ngpus=N`` processes, or under torchrun, srun or submitit.

``run_distributed`` is the entry: it reads rank and world size from the environment, connects the processes by a store
and calls the work with a ``Distributed``. The processes of ``ngpus=N`` get the environment variables of torchrun.

Two pieces are not those of torch or submitit, for these reasons:

- ``ngpus=N`` starts its processes by ``torch.multiprocessing`` and not by torch's elastic agent. The agent's workers
  that are commands lead sessions of their own and have no parent-death signal: they outlive an agent that is killed,
  and keep the directory of the run. Its workers that are functions are interrupted by a terminal and by the agent, and
  the second interrupt ends them without a checkpoint. ``torch.multiprocessing`` has the parent-death signal, and
  signals are forwarded here, once.
- srun and submitit meet through a file in the output directory and not at the port that
  ``submitit.helpers.TorchDistributedEnvironment`` computes from the number of the job. Two steps of one allocation, or
  a requeued job beside what is left of it, would have the same port, and a plain srun has no such helper. The file
  names a free port and the attempt.
"""

import functools
import json
import logging
import logging.config
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import multiprocessing as mp
from torch.multiprocessing.spawn import ProcessException
from tqdm import tqdm

from utils.devices import choose_device, choose_devices, share_cores
from utils.distributed import Distributed
from utils.distributed_env import DistributedEnv, detect_launcher
from utils.errors import InputError, TrainingError, UserError
from utils.options import plain
from utils.roll_call import RollCall, read_failure
from utils.signals import StopSignals, block_sigint, unblock_sigint

log = logging.getLogger(__name__)

GRACE = 10.0  # seconds until the other processes are killed after the first one failed
CONSEQUENCE = "consequence"  # key in the store: message of a process that ended because another one is gone
STOPPED = "stopped"  # key in the store: number of the signal that ended the work after it was saved

Work = Callable[[DictConfig, Path, Distributed, StopSignals], int]
"""work(cfg, out_dir, distributed, stop): returns the number of the signal that stopped it, or 0."""


def run_distributed(
    work: Work, cfg: DictConfig, out_dir: Path, startup_timeout: float = 600, step_timeout: float = 86_400
) -> None:
    """Run ``work`` in this process, or in ``cfg.ngpus`` processes if no launcher started several.

    Args:
        work: function of a module, so that another process can import it.
        cfg: configuration with ``device`` and ``ngpus``.
        out_dir: output directory, on a file system that all machines share.
        startup_timeout: seconds within which all processes must have started and loaded their data.
        step_timeout: seconds that a process waits for the others later on.

    Raises:
        SystemExit: if a signal stopped the work.
        UserError: if a process fails. Other exceptions of ``work`` in this process pass through.
    """
    env = detect_launcher()
    _use_thread_lock()
    with StopSignals() as stop:
        if env is None and cfg.ngpus > 1:
            signum = _run_group(work, cfg, out_dir, startup_timeout, step_timeout, stop)
        elif env is None:
            share_cores(1)
            signum = work(cfg, out_dir, Distributed(choose_device(cfg.device)), stop)
        else:
            signum = run_under_launcher(work, cfg, out_dir, startup_timeout, step_timeout, stop, env)
    if signum:
        stop.reraise(signum, env.rank if env else 0)


def run_under_launcher(
    work: Work,
    cfg: DictConfig,
    out_dir: Path,
    startup_timeout: float,
    step_timeout: float,
    stop: StopSignals,
    env: DistributedEnv,
    store: dist.Store | None = None,
) -> int:
    """Run ``work`` as one of the processes of a launcher; return the number of the signal that stopped it, or 0.

    Args:
        work, cfg, out_dir, startup_timeout, step_timeout: as for ``run_distributed``.
        stop: signals of this process.
        env: place of this process.
        store: store of all processes, if they share one already.

    Raises:
        UserError: if this process or another one fails.
    """
    if env.rank > 0:
        logging.getLogger().setLevel(logging.ERROR)
        stop.quiet = True
    # torchrun's processes share the cores of a Slurm task; those of srun are one task each
    share_cores(*((env.local_size, 1) if env.launcher == "torchrun" else (1, env.local_size)))
    device = local_device(env, choose_device(cfg.device))
    with ExitStack() as context:
        if store is None and env.world_size > 1:
            if env.launcher == "torchrun":
                store = _launcher_store()
            else:
                store = file_rendezvous(env, out_dir / ".rendezvous", startup_timeout)
        if store is not None:
            store.set_timeout(timedelta(seconds=startup_timeout))
        distributed = Distributed(device, env.rank, env.world_size, store, startup_timeout, step_timeout)
        if env.rank == 0:
            (out_dir / ".rendezvous").unlink(missing_ok=True)
        roll_call = None
        if store is not None:
            server = "torchrun on the machine of process 0" if env.launcher == "torchrun" else "process 0"
            roll_call = context.enter_context(RollCall(store, env.rank, env.world_size, server))
        try:
            signum = work(cfg, out_dir, distributed, stop)
            distributed.shutdown()
        except Exception as error:
            reported = _reported_error(error, roll_call, env)
            if reported is error:
                raise
            raise reported from error
    return signum


def _reported_error(error: Exception, roll_call: RollCall | None, env: DistributedEnv) -> Exception:
    """Return the exception to raise for ``error``: itself if it is shown as one line, else a TrainingError.

    Its message names the process at fault, which the other processes learn through ``roll_call``.
    """
    in_one_line, who = isinstance(error, UserError | OSError), f"process {env.rank} of {env.world_size}"
    # Failures of gloo, nccl and the store are RuntimeErrors; any other exception is a fault of this process.
    if not in_one_line and isinstance(error, RuntimeError) and roll_call and (lost := roll_call.find_failed()):
        return TrainingError(f"{who} cannot continue: {lost}")
    if not in_one_line:
        log.error("%s:\n%s", who, "".join(traceback.format_exception(error)))
        error = TrainingError(f"{who} failed: {type(error).__name__}: {error}".splitlines()[0])
    if roll_call is not None:
        roll_call.report_failure(str(error), isinstance(error, InputError))
    return error


def _use_thread_lock() -> None:
    """Let progress bars of this process lock each other out by threads alone; only one process shows any.

    The lock of tqdm is otherwise also a semaphore, of which Python warns on the terminal when the process is killed.
    """
    tqdm.set_lock(threading.RLock())


def local_device(env: DistributedEnv, device: torch.device) -> torch.device:
    """Return the device of a process: its GPU by local rank, if it sees all GPUs of the machine, or the one it sees."""
    if device.type == "cpu":
        return device
    return torch.device("cuda", env.local_rank % torch.cuda.device_count())


def broadcast_run_id(run_id: str) -> str:
    """Return one identifier in all processes of a launcher: ``run_id`` of process 0, or the number of a Slurm job."""
    env = detect_launcher()
    if env is None or env.world_size == 1:
        return run_id
    if env.launcher != "torchrun":
        return f"job-{env.job}"
    store = _launcher_store()
    if env.rank == 0:
        store.set("run_id", run_id)
    return store.get("run_id").decode()


@functools.cache
def _launcher_store() -> dist.Store:
    """Connect to the store at MASTER_ADDR:MASTER_PORT; process 0 serves it if the launcher does not."""
    return next(dist.rendezvous("env://"))[0]


def file_rendezvous(env: DistributedEnv, path: Path, timeout: float) -> dist.TCPStore:
    """Make a store that process 0 serves on a free port, which it writes to a file that all processes can read.

    Raises:
        TrainingError: if there is no such file of this attempt within ``timeout`` seconds.
    """
    if env.rank == 0:
        one_machine = int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) == 1
        host = "127.0.0.1" if one_machine else socket.gethostname()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps([env.attempt, host, store.port]))
        os.replace(temporary, path)
        return store
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ValueError, dist.DistError):  # the last: the file of a killed attempt
            attempt, host, port = json.loads(path.read_text())
            if attempt == env.attempt:
                return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10))
        time.sleep(0.1)
    raise TrainingError(f"process 0 did not start within startup_timeout={timeout:g} seconds: no {path}")


def _run_group(
    work: Work, cfg: DictConfig, out_dir: Path, startup_timeout: float, step_timeout: float, stop: StopSignals
) -> int:
    """Run ``work`` in ``cfg.ngpus`` processes of this machine and wait for their end, forwarding signals.

    Returns:
        The number of the signal that stopped them, or 0.

    Raises:
        UserError: if a process failed; the others are then killed.
        KeyboardInterrupt: after an interrupt that came before there was a state to save.
    """
    size = len(choose_devices(cfg.device, cfg.ngpus))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    logs = {"version": 1, "disable_existing_loggers": False}
    if HydraConfig.initialized():
        logs = plain(HydraConfig.get().job_logging, resolve=True)
    arguments = (work, cfg, out_dir, startup_timeout, step_timeout, place, logs)
    logging.getLogger("torch.multiprocessing").setLevel(logging.ERROR)  # the end of a process is reported below
    # Deferred and not only blocked: another thread may receive the signal, and a process whose arguments are never sent
    # prints a traceback.
    stop.quiet = True
    stop.defer()
    with block_sigint():
        group = mp.start_processes(_run_as, arguments, size, join=False, start_method="spawn")
    forwarded, failed = False, None
    try:
        while not group.join(timeout=0.2, grace_period=GRACE):
            if stop.received and not forwarded:
                forwarded = True
                # Not SIGINT: they may have one from the terminal, and a second one would interrupt their saving.
                for process in group.processes:
                    if process.is_alive():
                        os.kill(process.pid, signal.SIGTERM)
    except ProcessException as error:
        failed = error.error_index
    finally:
        for process in group.processes:
            process.kill()
    if failure := read_failure(store):
        raise (InputError if failure[2] else UserError)(failure[1])
    if failed is not None and not stop.received:
        code = group.processes[failed].exitcode
        if code == 1 and store.check([CONSEQUENCE]):
            raise UserError(store.get(CONSEQUENCE).decode())
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        raise UserError(f"process {failed} of {size} {how}")
    if store.check([STOPPED]):
        return stop.received or int(store.get(STOPPED))
    if stop.received == signal.SIGINT:
        raise KeyboardInterrupt
    return stop.received


def _run_as(
    rank: int,
    work: Work,
    cfg: DictConfig,
    out_dir: Path,
    startup_timeout: float,
    step_timeout: float,
    place: dict[str, Any],
    logs: dict[str, Any],
) -> None:
    """Run ``work`` as process ``rank`` of a group; the process that started this one prints a one-line error."""
    os.environ.update({key: str(value) for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()})
    logging.raiseExceptions = False
    logging.config.dictConfig(logs)
    _use_thread_lock()
    with StopSignals() as stop:
        unblock_sigint()
        env = detect_launcher()
        assert env is not None
        store = dist.TCPStore(place["MASTER_ADDR"], place["MASTER_PORT"], is_master=False)
        try:
            signum = run_under_launcher(work, cfg, out_dir, startup_timeout, step_timeout, stop, env, store)
        except (UserError, OSError) as error:
            if cfg.debug is True:
                log.error("process %d of %d", rank, env.world_size, exc_info=True)
            with suppress(dist.DistError):
                store.compare_set(CONSEQUENCE, "", str(error))
            raise SystemExit(1) from None
    if signum:
        store.set(STOPPED, str(signum))

"""Which of several processes this one is, when a launcher started them; without torch, for the entry points."""

import os
import re
import sys
import time
from dataclasses import dataclass

from utils.errors import InputError

# Where those who start several processes say which one this is: rank, size, rank on this machine.
ENVIRONMENTS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "submitit": ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
}


@dataclass(frozen=True)
class DistributedEnv:
    """The place of this process among those that a launcher started.

    Attributes:
        launcher: a key of ``ENVIRONMENTS``.
        rank, world_size, local_rank: numbers of this process, of all, and of this one on its machine.
        local_size: how many of them are on this machine.
        job: the same for all processes, also when the job is requeued.
        attempt: the same for all processes of this start, and for no others.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    job: str = ""
    attempt: str = ""


def detect_launcher() -> DistributedEnv | None:
    """The seat that the environment gives this process; None if it was started alone."""
    for launcher, names in ENVIRONMENTS.items():
        if all(name in os.environ for name in names):
            rank, size, local_rank = (int(os.environ[name]) for name in names)
            if size > 1 or launcher == "torchrun":
                identity = [os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SUBMITIT_LOCAL_JOB_ID")]
                job = ".".join(filter(None, identity))
                attempt = f"{job}/{os.environ.get('SLURM_RESTART_COUNT', 0)}"
                return DistributedEnv(launcher, rank, size, local_rank, _local_size(launcher, size), job, attempt)
    return None


def _local_size(launcher: str, size: int) -> int:
    """How many of the processes are on this machine; all, if the launcher does not say."""
    if launcher == "torchrun":
        return int(os.environ.get("LOCAL_WORLD_SIZE", size))
    counts: list[int] = []
    if launcher == "srun":  # such as "2(x3),1": two on each of three machines, one on the next
        written = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        counts = [int(count) for count, times in written for _ in range(int(times or 1))]
    machine = int(os.environ.get("SLURM_NODEID", 0))
    return counts[machine] if machine < len(counts) else size


def wait_for_process_0() -> None:
    """Give process 0 time to say why all of them end: torchrun ends the others as soon as one has ended."""
    time.sleep(5)


def require_one_process(script: str) -> None:
    """End this process, if a launcher started several of them for a script that is one and starts others itself.

    Raises:
        SystemExit: with status 1, after one line of process 0.
        InputError: in a job of submitit, which then says it.
    """
    env = detect_launcher()
    if env is None or env.world_size == 1:
        return
    message = (
        f"{script} was started as {env.world_size} processes: start one, which starts others itself with ngpus=N "
        "(and hydra.launcher.tasks_per_node=1)"
    )
    if "SUBMITIT_EXECUTOR" in os.environ:
        raise InputError(message)
    if env.rank > 0:
        wait_for_process_0()
        sys.exit(1)
    sys.exit(message)

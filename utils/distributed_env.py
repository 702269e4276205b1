"""Which of several processes this one is, as their launcher says; without torch, for the entry points."""

import os
import re
import time
from dataclasses import dataclass

# Variables in which a launcher says which process this is: rank, world size, rank on this machine.
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
    """Read this process's place among others from the environment; None if it was started alone."""
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
    """Count the processes on this machine; all, if the launcher does not say."""
    if launcher == "torchrun":
        return int(os.environ.get("LOCAL_WORLD_SIZE", size))
    counts: list[int] = []
    if launcher == "srun":  # such as "2(x3),1": two on each of three machines, one on the next
        written = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        counts = [int(count) for count, times in written for _ in range(int(times or 1))]
    machine = int(os.environ.get("SLURM_NODEID", 0))
    return counts[machine] if machine < len(counts) else size


def wait_for_process_0() -> None:
    """Wait while process 0 says why all of them end: torchrun ends the others as soon as one has ended."""
    time.sleep(5)

"""Rank and world size of this process, from the environment of its launcher; without torch, for the entry points."""

import os
import re
import time
from dataclasses import dataclass

# Environment variables of each launcher: rank, world size, rank on this machine.
ENVIRONMENTS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "submitit": ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
}


@dataclass(frozen=True)
class DistributedEnv:
    """The place of this process among those that a launcher started.

    Attributes:
        launcher: name of the launcher, a key of ``ENVIRONMENTS``.
        rank: number of this process.
        world_size: number of processes.
        local_rank: number of this process on its machine.
        local_size: number of processes on this machine.
        job: identifier of the job, which stays the same when it is requeued.
        attempt: identifier of this start of the job, which differs after a requeue.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    job: str = ""
    attempt: str = ""


def detect_launcher() -> DistributedEnv | None:
    """Read this process's rank and world size from the environment; None if no launcher started it."""
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
    """Return the number of processes on this machine; ``size`` if the launcher does not state it."""
    if launcher == "torchrun":
        return int(os.environ.get("LOCAL_WORLD_SIZE", size))
    counts: list[int] = []
    if launcher == "srun":  # "2(x3),1" stands for two on each of three machines and one on the next
        written = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        counts = [int(count) for count, times in written for _ in range(int(times or 1))]
    machine = int(os.environ.get("SLURM_NODEID", 0))
    return counts[machine] if machine < len(counts) else size


def wait_for_process_0() -> None:
    """Wait while process 0 reports an error that all have: torchrun ends the others as soon as one has ended."""
    time.sleep(5)

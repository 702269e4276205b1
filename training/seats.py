"""Which of several processes this one is, when a launcher started them; without torch, for the doors."""

import os
from dataclasses import dataclass

# Where those who start several processes say which one this is: rank, size, rank on this machine.
ENVIRONMENTS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "submitit": ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
}


@dataclass(frozen=True)
class Seat:
    """The place of this process among those that a launcher started.

    Attributes:
        launcher: a key of ``ENVIRONMENTS``.
        rank, size, local_rank: numbers of this process, of all, and of this one on its machine.
        job: the same for all processes, also when the job is requeued.
        attempt: the same for all processes of this start, and for no others.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    job: str = ""
    attempt: str = ""


def find_seat() -> Seat | None:
    """The seat that the environment gives this process; None if it was started alone."""
    for launcher, names in ENVIRONMENTS.items():
        if all(name in os.environ for name in names):
            rank, size, local_rank = (int(os.environ[name]) for name in names)
            if size > 1 or launcher == "torchrun":
                identity = [os.environ.get(name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SUBMITIT_LOCAL_JOB_ID")]
                job = ".".join(filter(None, identity))
                attempt = f"{job}/{os.environ.get('SLURM_RESTART_COUNT', 0)}"
                return Seat(launcher, rank, size, local_rank, job, attempt)
    return None

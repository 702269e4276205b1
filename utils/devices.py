"""Where to compute: the keys ``device`` and ``ngpus``, and the cores of a process."""

import os
import resource
import sys

import torch

from utils.errors import InputError
from utils.options import check_name


def choose_device(device: str) -> torch.device:
    """The torch device for the key ``device``: auto, cpu or cuda.

    Raises:
        InputError: for another name, or for cuda where there is none.
    """
    check_name("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda, but torch sees no GPU here: use device=auto or device=cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def choose_devices(device: str, ngpus: int) -> list[torch.device]:
    """The device of each of ``ngpus`` processes: the first GPUs, or the CPU for all.

    Raises:
        InputError: as ``choose_device``, or for more GPUs than there are.
    """
    kind = choose_device(device)
    if kind.type == "cpu":
        if ngpus > 4 * (os.cpu_count() or 1):
            raise InputError(f"ngpus={ngpus}, but there are {os.cpu_count()} cores here")
        return [kind] * ngpus
    if ngpus > torch.cuda.device_count():
        raise InputError(f"ngpus={ngpus}, but torch sees {torch.cuda.device_count()} GPUs here")
    return [torch.device("cuda", index) for index in range(ngpus)]


def share_cores(processes: int, tasks: int = 1) -> None:
    """Let torch use this process's share of the cores: threads of several processes on one core wait for each other.

    It is that of a Slurm task, or else of what torch sees; a user's OMP_NUM_THREADS has the first word.

    Args:
        processes: how many share a task.
        tasks: how many a launcher started on this machine, if it does not say what a task has.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = int(os.environ.get("SLURM_CPUS_PER_TASK", torch.get_num_threads() // tasks))
        torch.set_num_threads(max(1, cores // processes))


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors on a GPU, or this process on a CPU, have taken so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

"""Devices for the keys ``device`` and ``ngpus``, threads and memory of a process."""

import os
import resource
import sys

import torch

from utils.errors import InputError
from utils.options import check_name


def choose_device(device: str) -> torch.device:
    """Return the torch device for the key ``device``: auto, cpu or cuda.

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
    """Return the device of each of ``ngpus`` processes: the first GPUs, or the CPU for all.

    Raises:
        InputError: as ``choose_device``, or for more processes than GPUs or four times the cores.
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
    """Set torch's number of threads to this process's share of the cores, so that processes do not compete for cores.

    The cores are those of a Slurm task, or else those that torch sees. OMP_NUM_THREADS, if set, takes precedence.

    Args:
        processes: number of processes that share a task.
        tasks: number of tasks on this machine, used if the launcher does not state the cores of a task.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = int(os.environ.get("SLURM_CPUS_PER_TASK", torch.get_num_threads() // tasks))
        torch.set_num_threads(max(1, cores // processes))


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of tensors on a GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

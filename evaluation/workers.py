"""Work on ranges of images, done here or shared among processes, one on each device."""

import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import torch
from omegaconf import DictConfig
from torch import multiprocessing as mp
from torch.multiprocessing.spawn import ProcessException
from tqdm import tqdm

from utils import interrupts
from utils.devices import share_cores
from utils.errors import UserError

Worker = Callable[[range, Callable[[], object]], Any]
"""worker(images, on_step): what it makes of the images with these numbers; reports its steps on the way."""
MakeWorker = Callable[[DictConfig, torch.device], Worker]


def parallel_map(
    worker: Worker,
    make: MakeWorker | None,
    cfg: DictConfig,
    tasks: Sequence[range],
    devices: Sequence[torch.device],
    bar: tqdm,
) -> Iterator[Any]:
    """Do the tasks; yield what comes of each, in order.

    Args:
        worker: who does them if there is one device.
        make: makes a worker in each of several processes; a function or class of a module.
        cfg: what it makes it from.
        tasks: dealt out to the devices in turn.
        devices: one for each process.
        bar: moved on by the steps of all.

    Raises:
        UserError: if a process fails.
    """
    if len(devices) == 1 or not tasks:
        for task in tasks:
            yield worker(task, bar.update)
        return
    context = mp.get_context("spawn")
    results, steps = context.Queue(), context.Value("q", 0)
    shared = (make, cfg, tasks, devices, results, steps)
    # with join=False, a process that fails ends the others, and its traceback comes with the error
    with interrupts.block_sigint():
        workers = mp.start_processes(_work, shared, len(devices), join=False, start_method="spawn")
    done: dict[int, Any] = {}
    try:
        for number in range(len(tasks)):
            while number not in done:
                try:
                    finished, result = results.get(timeout=0.2)
                except queue.Empty:
                    workers.join(timeout=0)
                else:
                    if isinstance(result, UserError):
                        raise result
                    done[finished] = result
                bar.update(steps.value - bar.n)
            yield done.pop(number)
    except ProcessException as error:
        if cfg.debug:
            raise
        raise UserError(f"a process has failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        for process in workers.processes:
            process.kill()


def _work(
    rank: int,
    make: MakeWorker,
    cfg: DictConfig,
    tasks: Sequence[range],
    devices: Sequence[torch.device],
    results: mp.Queue,
    steps: Synchronized,
) -> None:
    """What one process does: the tasks rank, rank + n, ..., of n processes."""
    # An interrupt, which torch also sends when the parent is killed, ends this process without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    interrupts.unblock_sigint()
    n = len(devices)
    share_cores(n)

    def on_step() -> None:
        with steps.get_lock():
            steps.value += 1

    try:
        worker = make(cfg, devices[rank])
        for number in range(rank, len(tasks), n):
            results.put((number, worker(tasks[number], on_step)))
    except UserError as error:
        results.put((rank, error))

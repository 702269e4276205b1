"""Collective operations of the processes that train, sample or evaluate together."""

import gc
import json
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

# Functions of this module have the process group as default argument, that of the time of the first import. If that is
# DistributedDataParallel's, then the group and its threads live until the process ends (see ``shutdown``).
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import InputError, TrainingError, UserError

T = TypeVar("T")


class Distributed:
    """Communication of this process with the others; with one process, every operation is the identity.

    Args:
        device: device that this process computes on.
        rank: number of this process.
        world_size: number of processes.
        store: key-value store of all processes; None for one process.
        startup_timeout: seconds within which all processes must have started and loaded their data.
        step_timeout: seconds that a process waits for the others after ``use_step_timeout``.

    Raises:
        TrainingError: if the others do not start in time.
    """

    def __init__(
        self,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        store: dist.Store | None = None,
        startup_timeout: float = 600,
        step_timeout: float = 600,
    ) -> None:
        self.device, self.rank, self.world_size = device, rank, world_size
        self._store, self._num_runs = cast(dist.Store, store), 0  # None is never used: world_size is 1 then
        self._store_timeout, self._step_timeout = timedelta(seconds=startup_timeout), timedelta(seconds=step_timeout)
        if world_size > 1:
            self._wait_for_all()
            if device.type == "cuda":
                torch.cuda.set_device(device)
            # Values in host memory are exchanged by gloo, gradients on GPUs by nccl.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=self._step_timeout)

    def _wait_for_all(self) -> None:
        self._store.set(f"arrived/{self.rank}", "")
        everyone = [f"arrived/{rank}" for rank in range(self.world_size)]
        try:
            self._store.wait(everyone, self._store_timeout)
        except dist.DistStoreError as error:
            missing = [rank for rank, key in enumerate(everyone) if not self._store.check([key])]
            raise TrainingError(
                f"processes {', '.join(map(str, missing))} of {self.world_size} did not start within "
                f"startup_timeout={self._store_timeout.total_seconds():g} seconds"
            ) from error

    def local_slice(self, n: int) -> slice:
        """Return this process's slice of ``n`` items: consecutive, of sizes that differ by at most one."""
        return slice(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)

    def data_parallel(self, net: nn.Module) -> nn.Module:
        """Wrap ``net`` so that ``backward`` averages the gradients over the processes."""
        if self.world_size == 1:
            return net
        # A 1x1 convolution's gradient has strides of its own; the copy that torch warns of costs next to nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(net, devices, gradient_as_bucket_view=True)

    def no_sync(self, net: nn.Module) -> AbstractContextManager:
        """Return a context in which ``backward`` through a ``data_parallel`` network does not average gradients."""
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()

    def use_step_timeout(self) -> None:
        """Use ``step_timeout`` instead of ``startup_timeout`` from here on."""
        self._store_timeout = self._step_timeout

    def run_on_main(self, act: Callable[[], T]) -> T:
        """Call ``act`` in process 0 while the others wait; return its result, which JSON can represent, in all.

        Raises:
            UserError, OSError: if ``act`` raises one in process 0; the others raise a UserError with its message.
            TrainingError: in the others, after the timeout.
        """
        if self.world_size == 1:
            return act()
        key = f"main/{self._num_runs}"
        self._num_runs += 1
        if self.rank == 0:
            try:
                value = act()
            except (UserError, OSError) as error:
                self._store.set(key, json.dumps({"failed": str(error), "bad_input": isinstance(error, InputError)}))
                raise
            self._store.set(key, json.dumps({"value": value}))
            return value
        try:
            self._store.wait([key], self._store_timeout)
        except dist.DistStoreError as error:
            raise TrainingError(
                f"process 0 let the others wait for more than {self._store_timeout.total_seconds():g} seconds: raise "
                "training.startup_timeout or training.step_timeout, or prepare the data ahead by training.n_iters=0"
            ) from error
        outcome = json.loads(self._store.get(key))
        if "failed" in outcome:
            raise (InputError if outcome["bad_input"] else UserError)(outcome["failed"])
        return outcome["value"]

    def main_first(self, load: Callable[[], T]) -> T:
        """Call ``load`` in process 0 and then in the others, so that only process 0 downloads or caches data."""
        loaded: list[T] = []
        self.run_on_main(lambda: loaded.append(load()))
        return loaded[0] if loaded else load()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over the processes."""
        if self.world_size > 1:
            dist.all_reduce(values := values.clone())
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """Return ``values`` of every process, (world_size, ...)."""
        if self.world_size == 1:
            return values[None]
        dist.all_gather(gathered := [torch.empty_like(values) for _ in range(self.world_size)], values)
        return torch.stack(gathered)

    def all_reduce_max(self, value: int) -> int:
        """Return the largest ``value`` of all processes; it is exchanged in host memory, without waiting for a GPU."""
        if self.world_size == 1:
            return value
        dist.all_reduce(values := torch.tensor(value), dist.ReduceOp.MAX)
        return int(values)

    def gather(self, value: Any) -> list[Any] | None:
        """Return the ``value`` of each process in process 0; None in the others."""
        if self.world_size == 1:
            return [value]
        dist.gather_object(value, gathered := [None] * self.world_size if self.rank == 0 else None)
        return gathered

    def shutdown(self, timeout: float = 30) -> None:
        """Wait up to ``timeout`` seconds until all processes are done, leave the process group, and end its threads.

        No network of ``data_parallel`` may be referred to any more: it keeps the threads. One that still releases a
        tensor while the interpreter ends has the process killed by SIGABRT.
        """
        if self.world_size == 1:
            return
        self._store.set(f"left/{self.rank}", "")
        deadline = time.monotonic() + timeout
        everyone = [f"left/{rank}" for rank in range(self.world_size)]
        while not self._store.check(everyone) and time.monotonic() < deadline:
            time.sleep(0.05)
        dist.destroy_process_group()
        gc.collect()  # the network may be in a cycle of references

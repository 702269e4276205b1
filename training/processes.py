"""The processes that train one network together, as one of them sees them."""

import json
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from errors import CleanError, TrainingError

T = TypeVar("T")


class World:
    """This process among those that train together; alone, every operation is the identity.

    Args:
        device: where this process computes.
        rank: number of this process; 0 alone writes files.
        size: how many there are.
        store: where they leave each other messages; with more than one process.
        startup_timeout: seconds until all are there and have their data.
        step_timeout: seconds that a process waits for the others in a step.

    Raises:
        TrainingError: if the others do not arrive in time.
    """

    def __init__(
        self,
        device: torch.device,
        rank: int = 0,
        size: int = 1,
        store: dist.Store | None = None,
        startup_timeout: float = 600,
        step_timeout: float = 600,
    ) -> None:
        self.device, self.rank, self.size = device, rank, size
        self._store, self._turn = cast(dist.Store, store), 0  # alone there is none, and nobody asks for it
        self._patience, self._step_timeout = timedelta(seconds=startup_timeout), timedelta(seconds=step_timeout)
        if size > 1:
            self._meet()
            if device.type == "cuda":
                torch.cuda.set_device(device)
            # What the hosts tell each other goes through gloo also where gradients go through nccl.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=self._step_timeout)

    def _meet(self) -> None:
        self._store.set(f"arrived/{self.rank}", "")
        everyone = [f"arrived/{rank}" for rank in range(self.size)]
        try:
            self._store.wait(everyone, self._patience)
        except dist.DistStoreError as error:
            missing = [rank for rank, key in enumerate(everyone) if not self._store.check([key])]
            raise TrainingError(
                f"processes {', '.join(map(str, missing))} of {self.size} did not start within "
                f"training.startup_timeout={self._patience.total_seconds():g} seconds"
            ) from error

    def share(self, n: int) -> slice:
        """Which of ``n`` things are this process's: even shares, in the order of the ranks."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def data_parallel(self, net: nn.Module) -> nn.Module:
        """``net`` such that ``backward`` leaves in every process the mean over the processes of the gradients."""
        if self.size == 1:
            return net
        # A 1x1 convolution's gradient has strides of its own; the copy that torch warns of costs next to nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(net, devices, gradient_as_bucket_view=True)

    def without_exchange(self, net: nn.Module) -> AbstractContextManager:
        """Where ``backward`` through a ``data_parallel`` network only adds to the gradients of this process."""
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()

    def started(self) -> None:
        """From here on processes wait for each other as long as a step may take."""
        self._patience = self._step_timeout

    def on_first(self, act: Callable[[], T]) -> T:
        """Do ``act`` in process 0 while the others wait; what it returns, plain values, reaches all.

        Raises:
            CleanError, OSError: of ``act`` in process 0, with the same message in the others.
        TrainingError: in the others, if it takes too long.
        """
        if self.size == 1:
            return act()
        key = f"first/{self._turn}"
        self._turn += 1
        if self.rank == 0:
            try:
                value = act()
            except (CleanError, OSError) as error:
                self._store.set(key, json.dumps({"failed": str(error)}))
                raise
            self._store.set(key, json.dumps({"value": value}))
            return value
        try:
            self._store.wait([key], self._patience)
        except dist.DistStoreError as error:
            raise TrainingError(
                f"process 0 let the others wait for more than {self._patience.total_seconds():g} seconds: raise "
                "training.startup_timeout or training.step_timeout, or prepare the data ahead by training.n_iters=0"
            ) from error
        outcome = json.loads(self._store.get(key))
        if "failed" in outcome:
            raise CleanError(outcome["failed"])
        return outcome["value"]

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes."""
        if self.size > 1:
            dist.all_reduce(values := values.clone())
        return values

    def all(self, values: Tensor) -> Tensor:
        """``values`` of every process, (size, ...)."""
        if self.size == 1:
            return values[None]
        dist.all_gather(gathered := [torch.empty_like(values) for _ in range(self.size)], values)
        return torch.stack(gathered)

    def highest(self, value: int) -> int:
        """The largest of a number of each process, exchanged by the hosts: a GPU is not waited for."""
        if self.size == 1:
            return value
        dist.all_reduce(values := torch.tensor(value), dist.ReduceOp.MAX)
        return int(values)

    def gather(self, value: Any) -> list[Any] | None:
        """What each process has, in process 0; None in the others."""
        if self.size == 1:
            return [value]
        dist.gather_object(value, gathered := [None] * self.size if self.rank == 0 else None)
        return gathered

    def leave(self, patience: float = 30) -> None:
        """Say goodbye to the others, so that none ends while another still needs it."""
        if self.size == 1:
            return
        self._store.set(f"left/{self.rank}", "")
        deadline = time.monotonic() + patience
        everyone = [f"left/{rank}" for rank in range(self.size)]
        while not self._store.check(everyone) and time.monotonic() < deadline:
            time.sleep(0.05)
        dist.destroy_process_group()

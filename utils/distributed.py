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

from utils.errors import TrainingError, UserError

T = TypeVar("T")


class Distributed:
    """This process among those that train together; alone, every operation is the identity.

    Args:
        device: where this process computes.
        rank: number of this process; 0 alone writes files.
        world_size: how many there are.
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
        world_size: int = 1,
        store: dist.Store | None = None,
        startup_timeout: float = 600,
        step_timeout: float = 600,
    ) -> None:
        self.device, self.rank, self.world_size = device, rank, world_size
        self._store, self._turn = cast(dist.Store, store), 0  # alone there is none, and nobody asks for it
        self._store_timeout, self._step_timeout = timedelta(seconds=startup_timeout), timedelta(seconds=step_timeout)
        if world_size > 1:
            self._meet()
            if device.type == "cuda":
                torch.cuda.set_device(device)
            # What the hosts tell each other goes through gloo also where gradients go through nccl.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=self._step_timeout)

    def _meet(self) -> None:
        self._store.set(f"arrived/{self.rank}", "")
        everyone = [f"arrived/{rank}" for rank in range(self.world_size)]
        try:
            self._store.wait(everyone, self._store_timeout)
        except dist.DistStoreError as error:
            missing = [rank for rank, key in enumerate(everyone) if not self._store.check([key])]
            raise TrainingError(
                f"processes {', '.join(map(str, missing))} of {self.world_size} did not start within "
                f"training.startup_timeout={self._store_timeout.total_seconds():g} seconds"
            ) from error

    def local_slice(self, n: int) -> slice:
        """Which of ``n`` things are this process's: even shares, in the order of the ranks."""
        return slice(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)

    def data_parallel(self, net: nn.Module) -> nn.Module:
        """``net`` such that ``backward`` leaves in every process the mean over the processes of the gradients."""
        if self.world_size == 1:
            return net
        # A 1x1 convolution's gradient has strides of its own; the copy that torch warns of costs next to nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(net, devices, gradient_as_bucket_view=True)

    def no_sync(self, net: nn.Module) -> AbstractContextManager:
        """Where ``backward`` through a ``data_parallel`` network only adds to the gradients of this process."""
        return net.no_sync() if isinstance(net, DistributedDataParallel) else nullcontext()

    def use_step_timeout(self) -> None:
        """From here on processes wait for each other as long as a step may take."""
        self._store_timeout = self._step_timeout

    def run_on_main(self, act: Callable[[], T]) -> T:
        """Do ``act`` in process 0 while the others wait; what it returns, plain values, reaches all.

        Raises:
            UserError, OSError: of ``act`` in process 0, with the same message in the others.
        TrainingError: in the others, if it takes too long.
        """
        if self.world_size == 1:
            return act()
        key = f"first/{self._turn}"
        self._turn += 1
        if self.rank == 0:
            try:
                value = act()
            except (UserError, OSError) as error:
                self._store.set(key, json.dumps({"failed": str(error)}))
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
            raise UserError(outcome["failed"])
        return outcome["value"]

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes."""
        if self.world_size > 1:
            dist.all_reduce(values := values.clone())
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """``values`` of every process, (size, ...)."""
        if self.world_size == 1:
            return values[None]
        dist.all_gather(gathered := [torch.empty_like(values) for _ in range(self.world_size)], values)
        return torch.stack(gathered)

    def all_reduce_max(self, value: int) -> int:
        """The largest of a number of each process, exchanged by the hosts: a GPU is not waited for."""
        if self.world_size == 1:
            return value
        dist.all_reduce(values := torch.tensor(value), dist.ReduceOp.MAX)
        return int(values)

    def gather(self, value: Any) -> list[Any] | None:
        """What each process has, in process 0; None in the others."""
        if self.world_size == 1:
            return [value]
        dist.gather_object(value, gathered := [None] * self.world_size if self.rank == 0 else None)
        return gathered

    def shutdown(self, patience: float = 30) -> None:
        """Say goodbye to the others, so that none ends while another still needs it."""
        if self.world_size == 1:
            return
        self._store.set(f"left/{self.rank}", "")
        deadline = time.monotonic() + patience
        everyone = [f"left/{rank}" for rank in range(self.world_size)]
        while not self._store.check(everyone) and time.monotonic() < deadline:
            time.sleep(0.05)
        dist.destroy_process_group()

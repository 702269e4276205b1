"""Finds out which of several processes is gone when an exchange among them fails.

It exists because nothing else says so under srun or on several machines: the error of gloo names an address at best,
that of nccl a time-out, and srun does not end the other tasks of a step.
"""

import json
import threading
import time
from contextlib import suppress

import torch.distributed as dist

ANSWER_TIME = 5.0  # seconds in which a process that is there answers
FAILURE = "failure"  # key in the store: message of the first process that failed, and whether it is an InputError


class RollCall:
    """Context in which a thread answers for this process when another one asks who is still there.

    Args:
        store: store of all processes.
        rank: number of this process.
        world_size: number of processes.
        server: name of what serves the store.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, server: str) -> None:
        self._store, self._rank, self._world_size, self._server = store, rank, world_size, server
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> "RollCall":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(timeout=ANSWER_TIME)

    def _answer(self) -> None:
        with suppress(dist.DistError):  # the store is gone with the process that serves it
            store = self._store.clone()  # a connection of its own: the other one may be waiting for something
            while not self._closed.wait(1):
                if store.check(["roll call"]):
                    store.set(f"present/{self._rank}", "")
                    return

    def report_failure(self, message: str, bad_input: bool) -> None:
        """Tell the others why this process ends; only the first of several messages counts."""
        with suppress(dist.DistError):
            self._store.compare_set(FAILURE, "", json.dumps([self._rank, message, bad_input]))

    def find_lost(self) -> str:
        """Ask who is still there; return a line on the process that failed or those that are gone, or ""."""
        everyone = [f"present/{rank}" for rank in range(self._world_size)]
        try:
            self._store.set("roll call", "")
            deadline = time.monotonic() + ANSWER_TIME
            while not self._store.check(everyone) and time.monotonic() < deadline:
                time.sleep(0.1)
            if failure := read_failure(self._store):
                return f"process {failure[0]} failed: {failure[1]}"
            gone = [rank for rank, key in enumerate(everyone) if not self._store.check([key])]
        except dist.DistError:
            return f"{self._server}, which serves the store, does not answer: it was killed, or its machine is lost"
        return "; ".join(f"process {rank} does not answer: it was killed, or its machine is lost" for rank in gone)


def read_failure(store: dist.Store) -> tuple[int, str, bool] | None:
    """Read what ``RollCall.report_failure`` left: rank, message, whether the input is at fault; None if none failed."""
    return tuple(json.loads(store.get(FAILURE))) if store.check([FAILURE]) else None

"""Search for the process that ended when communication among several processes fails.

Under srun or on several machines nothing else names it: gloo's error has at best an address, nccl's a time-out, and
srun does not end the other tasks of a step.
"""

import json
import threading
import time
from contextlib import suppress

import torch.distributed as dist

ANSWER_TIME = 5.0  # seconds within which a running process answers
FAILURE = "failure"  # key in the store: message of the first process that failed, and whether it is an InputError


class RollCall:
    """Context in which a thread of this process answers when another process calls ``find_failed``.

    Args:
        store: key-value store of all processes.
        rank: number of this process.
        world_size: number of processes.
        server: name, for messages, of the process that serves the store.
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
            store = self._store.clone()  # a second connection: the first may be blocked by a wait
            while not self._closed.wait(1):
                if store.check(["roll call"]):
                    store.set(f"present/{self._rank}", "")
                    return

    def report_failure(self, message: str, bad_input: bool) -> None:
        """Store why this process ends, for the other processes; only the first of several messages is stored."""
        with suppress(dist.DistError):
            self._store.compare_set(FAILURE, "", json.dumps([self._rank, message, bad_input]))

    def find_failed(self) -> str:
        """Return a line about the process that failed or those that do not answer; "" if all answer."""
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
    """Read the failure that ``RollCall.report_failure`` stored: rank, message, bad_input; None if there is none."""
    return tuple(json.loads(store.get(FAILURE))) if store.check([FAILURE]) else None

"""Which of several processes is gone, when an exchange among them fails: what gloo says names an address at best."""

import threading
import time
from contextlib import suppress

import torch.distributed as dist

ANSWER_TIME = 5.0  # seconds in which a process that is there answers


class RollCall:
    """While it is open, a thread answers for this process when another one asks who is still there.

    Args:
        store: of all processes.
        rank, size: of this process, and of all.
        server: who serves the store.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, server: str) -> None:
        self._store, self._rank, self._size, self._server = store, rank, size, server
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

    def failed(self, reason: str) -> None:
        """Tell the others why this process ends."""
        with suppress(dist.DistError):
            self._store.set(f"failed/{self._rank}", reason)

    def lost(self) -> str:
        """Ask who is still there; a line on those that are not, or nothing."""
        everyone = [f"present/{rank}" for rank in range(self._size)]
        try:
            self._store.set("roll call", "")
            deadline = time.monotonic() + ANSWER_TIME
            while not self._store.check(everyone) and time.monotonic() < deadline:
                time.sleep(0.1)
            found = []
            for rank, key in enumerate(everyone):
                if self._store.check([f"failed/{rank}"]):
                    found.append(f"process {rank} failed: {self._store.get(f'failed/{rank}').decode()}")
                elif not self._store.check([key]):
                    found.append(f"process {rank} does not answer: it was killed, or its machine is lost")
        except dist.DistError:
            return f"{self._server}, which serves the store, does not answer: it was killed, or its machine is lost"
        return "; ".join(found)

"""Signals that ask a run to stop, and what becomes of it then."""

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
LONGEST_GRACE = 3600  # seconds that Slurm may leave between its signal and the end of the job


class StopSignals:
    """While it is open, SIGTERM, SIGINT and SIGUSR2 are only noted; a second SIGINT interrupts at once.

    Until ``hold`` is called, because there is nothing to save yet, each of them ends the process.

    Attributes:
        received: number of the first signal; 0 before there is one.
    """

    def __init__(self) -> None:
        self.received = 0
        self._holding = self._leaving = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no signals
            self._previous = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def defer(self) -> None:
        """From here on signals wait for a good moment."""
        self._holding = True

    def _note(self, signum: int, _: FrameType | None) -> None:
        if not self._holding:
            if self._leaving:
                return
            self._leaving = True
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            if self._has_another_handler(signum):
                self.__exit__()  # not otherwise: another signal may be waiting for the handler that it had when it came
            self.reraise(signum)
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received and sys.stderr.isatty():  # not by logging, which a signal may have interrupted
            os.write(2, b"\nstopping: finishes the step and saves; Ctrl-C again stops at once\n")
        self.received = self.received or signum

    def reraise(self, signum: int, rank: int = 0) -> None:
        """End this process, with nothing left to save, as ``signum`` asks; call it when the context is closed.

        A handler that was there before, such as the one of submitit that puts the job back into the queue, has the
        first word.

        Raises:
            SystemExit: with 128 + ``signum``, as shells have it.
        """
        if self._has_another_handler(signum):
            self._previous[signum](signum, None)
            # The handler of submitit acts in process 0 and lets the others wait for the end of the job, which their
            # own would make a failure; and a job that Slurm is about to requeue must not end by itself.
            if rank > 0 or "SLURM_JOB_ID" in os.environ:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the next one is the end
                time.sleep(LONGEST_GRACE)
        sys.exit(128 + signum)

    def _has_another_handler(self, signum: int) -> bool:
        handler = self._previous.get(signum)
        return callable(handler) and handler is not signal.default_int_handler

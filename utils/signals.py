"""Handling of the signals that stop a script: Ctrl-C, SIGTERM, and Slurm's signal before a job's time limit."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
LONGEST_GRACE = 3600  # longest time in seconds between Slurm's signal and the end of a job


def exit_on_interrupt() -> None:
    """Make Ctrl-C end this process with the line "interrupted"; an entry script calls it before its imports.

    A process that ignores interrupts, such as a background job of a shell, still ignores them.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def enable_keyboard_interrupt() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again; an entry script calls it after its imports."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


@contextmanager
def block_sigint() -> Iterator[None]:
    """Block SIGINT inside the context, and in processes started there until they call ``unblock_sigint``.

    A terminal interrupts all processes of a script. A new one that is still importing would print a traceback; with
    the signal mask that it inherits, the interrupt stays pending.
    """
    resource_tracker.ensure_running()  # its start would unblock SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def unblock_sigint() -> None:
    """Unblock SIGINT, which this process inherited as blocked; a pending interrupt is delivered."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class StopSignals:
    """Context in which SIGTERM, SIGINT and SIGUSR2 end the process in an orderly way.

    Before ``defer`` each of them ends it at once: SIGINT by KeyboardInterrupt, the others by SystemExit. After it they
    are only recorded; a second SIGINT raises KeyboardInterrupt.

    Attributes:
        received: number of the first deferred signal; 0 before there is one.
        quiet: whether to leave out the message on the terminal that the step is finished first.
    """

    def __init__(self) -> None:
        self.received = 0
        self.quiet = False
        self._deferring = self._leaving = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python cannot handle signals
            enable_keyboard_interrupt()
            self._previous = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def defer(self) -> None:
        """Only record signals from here on; the caller reads ``received``."""
        self._deferring = True

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if not self._deferring:
            if self._leaving:
                return
            self._leaving = True
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            if self._has_another_handler(signum):
                self.__exit__()  # only then: a pending signal needs the handler that was set when it arrived
            self.reraise(signum)
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received and not self.quiet and sys.stderr.isatty():
            # Not by logging, which the signal may have interrupted.
            os.write(2, b"\nstopping: finishes the step and saves; Ctrl-C again stops at once\n")
        self.received = self.received or signum

    def reraise(self, signum: int, rank: int = 0) -> None:
        """End this process after ``signum``, once its state is saved and the context is closed.

        A handler that was set before, such as that of submitit, which requeues the job, is called first.

        Args:
            signum: number of the signal.
            rank: number of this process among those of a launcher.

        Raises:
            SystemExit: with 128 + ``signum``, as shells have it.
        """
        if self._has_another_handler(signum):
            self._previous[signum](signum, None)
            # The handler of submitit requeues the job in process 0; the others must wait for the end of the job, since
            # their own end would make it a failure. A job that Slurm is about to requeue must not end by itself.
            if rank > 0 or "SLURM_JOB_ID" in os.environ:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the next one ends the process
                time.sleep(LONGEST_GRACE)
        sys.exit(128 + signum)

    def _has_another_handler(self, signum: int) -> bool:
        handler = self._previous.get(signum)
        return callable(handler) and handler is not signal.default_int_handler

"""Ctrl-C while a script or a process of it is still starting: one line and no traceback. Imported before all else."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process, resource_tracker
from types import FrameType

# A process that one of ours started leaves without a word: that one speaks for it.
_STARTED_BY_US = current_process().name != "MainProcess"


def _leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"" if _STARTED_BY_US else b"interrupted\n")
    os._exit(130)


def enable_keyboard_interrupt() -> None:
    """From here on an interrupt raises KeyboardInterrupt, for there is something to clean up."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def block_sigint() -> Iterator[None]:
    """Interrupts wait: those of this process until the end, those of processes
    that start here until ``unblock_sigint``."""
    resource_tracker.ensure_running()  # which lets interrupts in when it starts
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def unblock_sigint() -> None:
    """Let interrupts in that waited since before this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not where interrupts are ignored
    signal.signal(signal.SIGINT, _leave)
    if _STARTED_BY_US:
        unblock_sigint()

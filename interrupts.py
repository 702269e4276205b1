"""Ctrl-C while a script is still importing: one line and no traceback. Imported before all else."""

import os
import signal
from multiprocessing import current_process
from types import FrameType

# A process that one of ours started leaves without a word: that one speaks for it.
_WORD = b"interrupted\n" if current_process().name == "MainProcess" else b""


def _leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, _WORD)
    os._exit(130)


def raise_from_here() -> None:
    """From here on an interrupt raises KeyboardInterrupt, for there is something to clean up."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not where interrupts are ignored
    signal.signal(signal.SIGINT, _leave)

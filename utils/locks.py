"""One process at a time in a directory."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def exclusive(directory: Path, reason: str) -> Iterator[None]:
    """Hold ``directory``, made if it is not there, for this process.

    Raises:
        InputError: with the ``reason``, if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:  # released by the system however the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{directory} is in use: {reason}") from None
        yield


@contextmanager
def in_turn(path: Path, reason: str) -> Iterator[None]:
    """Hold the lock file ``path``; while another process does, wait, with the ``reason`` in the log."""
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting: %s", reason)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

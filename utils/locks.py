"""Locks between processes, by the operating system's flock, which is released however a process ends."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from utils.errors import InputError, UserError, writing

log = logging.getLogger(__name__)


@contextmanager
def exclusive(directory: Path, reason: str) -> Iterator[None]:
    """Lock ``directory``, which is made if it does not exist, for this process.

    Raises:
        InputError: with the ``reason``, if another process has locked it.
        UserError: if the directory or the lock file in it cannot be written.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / ".lock")
    if not _acquire(lock, timeout=0):
        raise InputError(f"{directory} is in use: {reason}")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def in_turn(path: Path, reason: str) -> Iterator[None]:
    """Acquire the lock file ``path``; while another process has it, log the ``reason`` and wait.

    Raises:
        UserError: if the lock file cannot be written.
    """
    lock = FileLock(path)
    if not _acquire(lock, timeout=0):
        log.info("waiting: %s", reason)
        _acquire(lock, timeout=-1)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, timeout: float) -> bool:
    """Return whether ``lock`` was acquired within ``timeout`` seconds; -1 for no limit.

    Raises:
        UserError: if its file cannot be written.
    """
    try:
        lock.acquire(timeout=timeout)
    except Timeout:  # itself an OSError
        return False
    except OSError as error:
        raise UserError(f"{lock.lock_file} cannot be written: {error.strerror or error}") from error
    return True

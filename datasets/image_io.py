"""Decoding of many image files by several processes."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TypeVar

import numpy as np

from datasets.decode import DecodeOptions, DecodeStats, UnreadableError, decode, read_image, without_warnings
from datasets.find import SUFFIXES, find_images
from utils.errors import UserError

__all__ = ["SUFFIXES", "UnreadableError", "cores", "find_images", "in_processes", "read_image", "read_images"]

CHUNK = 256  # files that a process decodes at a time

T = TypeVar("T")


def in_processes(
    act: Callable[[Sequence], T], items: Sequence, workers: int
) -> Generator[tuple[Sequence, T], None, None]:
    """Apply a function to chunks of ``items`` in several processes, and yield each chunk with its result, in order.

    Args:
        act: function of a chunk, defined at the top of a module so that other processes can import it.
        items: sequence that is divided into chunks.
        workers: number of processes; 1 for the present process alone.

    Raises:
        UserError: if one of the processes is killed.
    """
    chunks = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    if workers == 1 or len(items) <= CHUNK:
        for chunk in chunks:
            yield chunk, act(chunk)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        waiting: deque[tuple[Sequence, Future[T]]] = deque()
        try:
            for chunk in chunks:
                # A new process inherits the mask: a terminal interrupts all processes, but only this one reports it.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    waiting.append((chunk, pool.submit(act, chunk)))
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                if len(waiting) > 2 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()
        except BrokenProcessPool as error:
            raise UserError("a process that reads images was killed: is there enough memory?") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Start a thread that ends this process when its parent is killed, which a pool does not do by itself."""
    parent = parent_process()
    assert parent is not None, "a process of a pool has one"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_images(
    paths: Sequence[Path], options: DecodeOptions, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[tuple[Path, str]], DecodeStats]]:
    """Decode many image files, a chunk at a time.

    Args:
        paths: paths of the files.
        options: options of decoding, with a size.
        workers: number of processes.

    Yields:
        Pixels, uint8 (n, C, size, size); positions in ``paths`` of the files that could be read, int64 (n,); the other
        files, with the reason; and statistics of the files.
    """
    first = 0
    for chunk, (pixels, good, bad, stats) in in_processes(partial(_read_chunk, options), paths, workers):
        yield pixels, first + good, [(chunk[k], reason) for k, reason in bad], stats
        first += len(chunk)


def _read_chunk(
    options: DecodeOptions, paths: Iterable[Path]
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]], DecodeStats]:
    """Decode one chunk of files; see ``read_images``, but with positions in the chunk."""
    pixels, good, bad, stats = [], [], [], DecodeStats()
    with without_warnings():
        for k, path in enumerate(paths):
            try:
                image, of_file = decode(path, options)
            except UnreadableError as error:
                bad.append((k, str(error)))
            else:
                pixels.append(image.transpose(2, 0, 1))
                good.append(k)
                stats += of_file
    size = options.size or 0
    none = np.empty((0, options.num_channels, size, size), dtype=np.uint8)
    return np.stack(pixels) if pixels else none, np.array(good, dtype=np.int64), bad, stats


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))

"""Image files of any kind as squares of one size: decoded, cropped, resized, by several processes."""

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
from PIL import Image, ImageOps

from errors import CleanError, InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
CHUNK = 256  # files that a process prepares at a time

T = TypeVar("T")


class UnreadableError(Exception):
    """An image file that cannot be decoded; the message says why."""


def read_image(path: Path, size: int | None, num_channels: int = 3) -> np.ndarray:
    """An image file as uint8 (size, size, num_channels): the square in its middle, resized with antialiasing (Lanczos).

    Without a ``size`` it is the whole image in its own, (H, W, num_channels). Turned as its EXIF data say, in RGB for 3
    channels and grey for 1, whatever it is stored as; of an animation the first frame. The format is read from the
    contents, not from the name.

    Raises:
        UnreadableError: if the file is damaged, cut short, not an image, or absurdly large.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image: Image.Image = file
            if image.mode.startswith("I;16"):  # PIL would clip it to 255 instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = ImageOps.exif_transpose(image).convert("L" if num_channels == 1 else "RGB")
            if size is not None:
                side = min(image.size)
                left, top = ((length - side) // 2 for length in image.size)
                image = image.crop((left, top, left + side, top + side))
                if side != size:
                    image = image.resize((size, size), Image.Resampling.LANCZOS)
            return np.asarray(image).reshape(image.height, image.width, num_channels)
    except Exception as error:  # decoders raise all kinds of things on damaged files
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error


def find_images(folder: Path) -> list[Path]:
    """The image files in ``folder`` and below, by their suffix, sorted by their path; hidden ones are left out.

    Raises:
        InputError: naming a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}")

    found = []
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(root, n) for n in names if n[0] != "." and os.path.splitext(n)[1].lower() in SUFFIXES]
    return [Path(path) for path in sorted(found)]


def in_processes(
    act: Callable[[Sequence], T], items: Sequence, workers: int
) -> Generator[tuple[Sequence, T], None, None]:
    """``act`` of one chunk of ``items`` after the other, in order, computed by several processes.

    Args:
        act: of a module, for other processes find it by its name.
        workers: processes; 1 computes here.

    Raises:
        CleanError: if one of them is killed.
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
                # What starts here inherits the mask: an interrupt in a terminal reaches all, one alone speaks of it.
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
            raise CleanError("a process that reads images was killed: is there enough memory?") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a process of a pool: end when the process that started it is killed, which the pool does not see to."""

    parent = parent_process()
    assert parent is not None, "a process of a pool has one"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_images(
    paths: Sequence[Path], size: int, num_channels: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[tuple[Path, str]]]]:
    """Many image files, some at a time.

    Yields:
        Pixels, uint8 (n, C, size, size); positions in ``paths`` of those that could be read, (n,); and the others, with
        the reason.
    """
    first = 0
    for chunk, (pixels, good, bad) in in_processes(partial(_read_chunk, size, num_channels), paths, workers):
        yield pixels, first + good, [(chunk[k], reason) for k, reason in bad]
        first += len(chunk)


def _read_chunk(
    size: int, num_channels: int, paths: Iterable[Path]
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    pixels, good, bad = [], [], []
    for k, path in enumerate(paths):
        try:
            pixels.append(read_image(path, size, num_channels).transpose(2, 0, 1))
            good.append(k)
        except UnreadableError as error:
            bad.append((k, str(error)))
    shape = (num_channels, size, size)
    return np.stack(pixels) if pixels else np.empty((0, *shape), np.uint8), np.array(good, dtype=np.int64), bad


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))

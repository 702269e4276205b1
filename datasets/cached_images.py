"""Decoding of image files into a cached data set."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets.cache import Part, fingerprint, open_cached
from datasets.decode import WHITE, DecodeOptions, DecodeStats
from datasets.image_io import cores, read_images
from datasets.images import ImageDataset
from utils.errors import InputError

log = logging.getLogger(__name__)

DECODING = 2  # version of the decoding; caches of another version are made again
DARK = 2**14  # 16-bit values that stay below it probably have fewer bits, and floats another range


def cache_images(
    root: Path,
    files: Sequence[Path],
    labels: np.ndarray,
    train: bool,
    options: DecodeOptions,
    num_classes: int,
    dataroot: str,
) -> ImageDataset:
    """Open the cached data set of some image files, which are decoded first if they are new or have changed.

    Args:
        root: folder that contains the files.
        files: paths of the files.
        labels: classes of the files, int64 (len(files),).
        train: whether they are the training split, about which ``_report`` logs.
        options: options of decoding.
        num_classes: number of classes.
        dataroot: folder of the cache.

    Raises:
        InputError: if a file is not there, no image can be read, or all would be nearly black.
    """
    size = options.size or 0

    def parts() -> Iterator[Part]:
        stats = DecodeStats()
        for pixels, good, bad, of_chunk in read_images(files, options, cores()):
            stats += of_chunk
            yield pixels, labels[good], [(str(path.relative_to(root)), reason) for path, reason in bad]
        if train:
            _report(root, stats, options)

    try:
        made_with = (DECODING, size, options.num_channels, options.background, options.white)
        made_of = fingerprint(files, root, *made_with, hashlib.sha256(labels.tobytes()).hexdigest())
    except OSError as error:
        raise InputError(f"{error.filename} is not there") from error
    own = () if options == DecodeOptions(options.size, options.num_channels) else (options.background, options.white)
    path = cache_path(root, train, dataroot, size, options.num_channels, num_classes, *own)
    return open_cached(path, made_of, (options.num_channels, size, size), len(files), parts, num_classes)


def _report(root: Path, stats: DecodeStats, options: DecodeOptions) -> None:
    """Log transparency and pages found in the training images, and check their range.

    Raises:
        InputError: if all images of 16 bits, or all of floating point, would be nearly black.
    """
    if stats.transparent and options.num_channels != 4:
        log.info(
            "%d images have transparent parts, composited on data.background=%s", stats.transparent, options.background
        )
    if stats.paged:
        log.info("%d files have more than one page or frame: the first is taken", stats.paged)
    if stats.deep and stats.peak < DARK and options.white is None:
        problem = (
            f"the {stats.deep} images of 16 bits in {root} are nearly black: no value is above {stats.peak} of {WHITE}"
        )
        if stats.deep_colour:
            raise InputError(f"{problem}; store them with 8 bits a channel, or say data.white={WHITE} if that is right")
        full = 2 ** max(8, stats.peak.bit_length()) - 1
        choice = f"data.white={full}, or data.white={WHITE} if that is right"
        raise InputError(f"{problem}; say which value is white, {choice}")
    if stats.floating and stats.float_peak < DARK / 2**16 and options.white is None:
        largest = str(np.float32(stats.float_peak))  # the shortest digits that give this value
        which = f"say which value is white, such as data.white={largest}, or" if stats.float_peak else "say"
        raise InputError(
            f"the {stats.floating} images of floating point in {root} are nearly black: no value is above {largest} of "
            f"1; {which} data.white=1 if that is right"
        )


def cache_path(root: Path, train: bool, dataroot: str, *options: object) -> Path:
    """Return the path of the cache of the images below ``root``, which depends on the ``options``."""
    key = hashlib.sha256(repr((str(root.resolve()), options)).encode()).hexdigest()[:8]
    return Path(dataroot) / "cache" / f"{root.resolve().name}-{key}-{'train' if train else 'held_out'}.json"

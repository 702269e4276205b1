"""The data set of a run: loading its splits, and a summary in the log and in data.png."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from datasets import ImageDataset, Loader, load_configured, scan_once
from sampling.figures import data_rows, save_figure
from sampling.images import save_grid, to_uint8
from sde import create_process
from utils.distributed import Distributed
from utils.errors import printable, replacing

log = logging.getLogger(__name__)

SHOWN = 64  # images in the grid, or coordinates in the log
MOST_PIXELS = 2**24  # of the grid, unless one image has more


def load_splits(cfg: DictConfig, distributed: Distributed) -> tuple[ImageDataset, ImageDataset]:
    """Load the training and the held-out split of the data set that ``cfg`` names.

    Rank 0 goes first, so that it alone downloads files or makes the cache.

    Raises:
        InputError: if there are no such data, or the process of ``cfg`` is for others.
    """
    process = create_process(cfg.sde)

    def load(train: bool) -> ImageDataset:
        images = load_configured(cfg.data, train, cfg.dataroot, cfg.data.get("root"), cfg.data.get("held_out"))
        images.check_domain(process)
        return images

    with scan_once():
        return distributed.main_first(lambda: load(True)), distributed.main_first(lambda: load(False))


def prepare_dataset(cfg: DictConfig) -> None:
    """Download and cache the data set that ``cfg`` names, unless that is done already."""
    load_splits(cfg, Distributed(torch.device("cpu")))


def show_data(
    images: ImageDataset, held_out: ImageDataset, batches: Loader, folder: Path, names: Sequence[str] | None = None
) -> None:
    """Log a summary of the data set; save the first images of the first batch as ``folder``/data.png.

    Of data that are not images, the range of each coordinate over the training split is logged, and data.png is the
    figure of some rows, with the ``names`` of their columns or channels.
    """
    shape = " x ".join(map(str, images.shape))
    each = f"{shape} (channels x height x width)" if images.is_image else shape
    what = "images" if images.is_image else "samples"
    log.info("%d %s to train on, %d held out, each %s", len(images), what, len(held_out), each)
    values = "continuous values" if images.levels is None else f"{images.levels} levels"
    log.info("%s; %s", _labels_summary(images, what), values)
    if not images.is_image:
        flat = images.data.flatten(1)[:, :SHOWN]
        known = names if names and len(names) == flat.shape[1] else range(SHOWN)
        for name, low, high in zip(known, flat.amin(0).tolist(), flat.amax(0).tolist(), strict=False):
            log.info("coordinate %s: %g to %g", printable(str(name)), low, high)
        save_figure(folder / "data.png", data_rows(images), names=names, what="rows of data")
        return
    count = save_data_grid(images, batches, folder, 0)
    log.info("%d of them%s in %s", count, "" if images.cond_size else ", by class,", folder / "data.png")


def save_data_grid(images: ImageDataset, batches: Loader, folder: Path, step: int) -> int:
    """Save the first images of the batch of ``step`` as ``folder``/data.png, by class if they have one.

    Returns:
        The number of images.
    """
    count = min(SHOWN, max(1, MOST_PIXELS // (images.shape[1] * images.shape[2])))
    x0, labels = (part[:count] for part in batches(step))
    if not images.cond_size:
        x0 = x0[torch.argsort(labels, stable=True)]
    path = folder / "data.png"
    with replacing(path) as temporary:
        save_grid(to_uint8(x0), temporary)
    return len(x0)


def _labels_summary(images: ImageDataset, what: str) -> str:
    """Log the names of the classes, and return what the network can be told about a sample."""
    if images.cond_size:
        return f"a condition of {images.cond_size} values"
    counts = images.labels.bincount(minlength=images.num_classes)
    for number, name in enumerate(images.class_names):
        log.info("class %d: %s, %d %s to train on", number, printable(name), counts[number], what)
    return f"{len(counts)} classes, of {counts.min()} to {counts.max()} {what}" if len(counts) > 1 else "no classes"

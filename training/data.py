"""The data set of a run, and a look at it."""

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig

from datasets import ImageDataset, Loader, load_configured, one_look
from sampling.images import save_grid, to_uint8
from utils.distributed import Distributed
from utils.errors import printable

log = logging.getLogger(__name__)

SHOWN = 64  # images in the grid


def load_split(cfg: DictConfig, train: bool, distributed: Distributed) -> ImageDataset:
    """The training or the held-out split of the data set that ``cfg`` names.

    Process 0 goes first, so that one alone downloads or packs.
    """
    return distributed.main_first(lambda: load_configured(cfg.data, train, cfg.dataroot, cfg.data.get("root")))


def load_splits(cfg: DictConfig, distributed: Distributed) -> tuple[ImageDataset, ImageDataset]:
    """The training and the held-out split; see ``load_split``."""
    with one_look():
        return load_split(cfg, True, distributed), load_split(cfg, False, distributed)


def prepare_dataset(cfg: DictConfig) -> None:
    """Download and pack the data set that ``cfg`` names, as far as that was not done yet."""
    load_splits(cfg, Distributed(torch.device("cpu")))


def show_data(images: ImageDataset, held_out: ImageDataset, batches: Loader, folder: Path) -> None:
    """Log what the data set is, and save the first images of the first batch as ``folder``/data.png."""
    counts = images.labels.bincount(minlength=images.num_classes)
    shape = " x ".join(map(str, images.pixels.shape[1:]))
    log.info(
        "%d images to train on, %d held out, each %s (channels x height x width)", len(images), len(held_out), shape
    )
    classes = f"{len(counts)} classes, of {counts.min()} to {counts.max()} images"
    for number, name in enumerate(images.class_names):
        log.info("class %d: %s, %d images to train on", number, printable(name), counts[number])
    log.info("%s; %d levels", classes if len(counts) > 1 else "no classes", images.levels)
    x0, labels = batches(0)
    order = torch.argsort(labels[:SHOWN], stable=True)
    save_grid(to_uint8(x0[:SHOWN][order]), folder / "data.png")
    log.info("%d of them, by class, in %s", len(order), folder / "data.png")

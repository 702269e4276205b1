"""The grid of samples that a run draws at each checkpoint it keeps."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from datasets import ImageDataset
from datasets.shape import is_image
from datasets.units import create_units
from models import ScoreModel
from sampling import create_sampler
from sampling.draw import draw_samples
from sampling.figures import data_rows, save_figure
from sampling.images import save_grid, save_trajectory, to_array, to_trajectory
from sde import Process
from utils.distributed import Distributed
from utils.errors import replacing, writing
from utils.signals import StopSignals


class _StoppedError(Exception):
    """Raised where a signal interrupts drawing, which a resumed run begins again."""


def save_samples(
    network: ScoreModel,
    process: Process,
    cfg: DictConfig,
    distributed: Distributed,
    stop: StopSignals,
    folder: Path,
    images: ImageDataset,
) -> None:
    """Draw ``eval.batch_size`` samples, one class after the other, to ``sample_0.npy`` and ``sample_0.png``.

    The picture of samples that are no images shows them beside rows of the training data ``images``. A network with a
    condition gets the null condition. The noise is the same at each snapshot. The processes share the images. After a
    signal nothing is written.
    """
    own = range(cfg.eval.batch_size)[distributed.local_slice(cfg.eval.batch_size)]
    parts = distributed.gather(_draw(network, process, cfg, distributed.device, stop, own) if own else ())
    if parts is None or None in parts:
        return
    drawn = [part for part in parts if part]
    pixels, trajectory = np.concatenate([part[0] for part in drawn]), drawn[0][1]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if is_image(cfg.data):
            save_grid(pixels, folder / "sample_0.png")
        else:
            save_figure(folder / "sample_0.png", pixels, data_rows(images), cfg.data.get("columns"))
        if trajectory is not None:
            save_trajectory(trajectory, folder / "trajectory")
    with replacing(folder / "sample_0.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, pixels)  # the array comes last and whole: its presence says done


def set_aside(folder: Path, checkpoint: Path) -> None:
    """Rename a ``folder`` of samples that is older than the ``checkpoint`` that its samples are to be drawn from.

    Its samples come from later steps than the checkpoint that the run was resumed from.
    """
    if folder.exists():
        with writing(folder):
            folder.rename(folder.with_name(f"{folder.name}_before_{checkpoint.stem}"))


def _draw(
    network: ScoreModel, process: Process, cfg: DictConfig, device: torch.device, stop: StopSignals, numbers: range
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Draw the images with these numbers and the trajectory of the first; return None after a signal."""

    def check_signal() -> None:
        if stop.received:
            raise _StoppedError

    classes = network.num_classes
    labels = torch.tensor(numbers, device=device) % classes if classes else None
    sampler = create_sampler(cfg.sampling, process, parametrization=network.parametrization)
    try:
        out = draw_samples(
            network,
            process,
            sampler,
            network.data_shape,
            numbers,
            cfg.seed,
            labels,
            on_step=check_signal,
            device=device,
        )
    except _StoppedError:
        return None
    image, units = is_image(cfg.data), create_units(cfg.data)
    trajectory = None if out.trajectory is None else to_trajectory(out.trajectory, image, units)
    return to_array(out.samples, image, units, process.sigma_min), trajectory

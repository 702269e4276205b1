"""The grid of samples that a run draws at each checkpoint it keeps."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from models import ScoreModel
from sampling import create_sampler, guided_score
from sampling.images import save_grid, save_trajectory, to_uint8
from sde import ReflectedVE
from utils.distributed import Distributed
from utils.errors import replacing, writing
from utils.seeds import image_generators
from utils.signals import StopSignals


class _StoppedError(Exception):
    """Drawing was given up; a resumed run begins it again."""


def draw_samples(
    network: ScoreModel, sde: ReflectedVE, cfg: DictConfig, distributed: Distributed, stop: StopSignals, folder: Path
) -> None:
    """Draw ``eval.batch_size`` images, one class after the other, to ``sample_0.png`` and ``sample_0.npy``.

    The processes share the images. After a signal nothing is written.
    """
    own = range(cfg.eval.batch_size)[distributed.local_slice(cfg.eval.batch_size)]
    parts = distributed.gather(_draw(network, sde, cfg, distributed.device, stop, own) if own else ())
    if parts is None or None in parts:
        return
    drawn = [part for part in parts if part]
    pixels, trajectory = np.concatenate([part[0] for part in drawn]), drawn[0][1]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_grid(pixels, folder / "sample_0.png")
        if trajectory is not None:
            save_trajectory(trajectory, folder / "trajectory")
    with replacing(folder / "sample_0.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, pixels)  # the array comes last and whole: its presence says done


def set_aside(folder: Path, checkpoint: Path) -> None:
    """Give samples another name if they are there before the ``checkpoint`` that they are to be drawn from.

    They are of a history that the run was taken back from.
    """
    if folder.exists():
        with writing(folder):
            folder.rename(folder.with_name(f"{folder.name}_before_{checkpoint.stem}"))


def _draw(
    network: ScoreModel, sde: ReflectedVE, cfg: DictConfig, device: torch.device, stop: StopSignals, images: range
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The images with these numbers and moments of the first of them, as uint8; None after a signal."""

    def give_up() -> None:
        if stop.received:
            raise _StoppedError

    classes = network.num_classes
    labels = torch.tensor(images, device=device) % classes if classes else None
    generators = image_generators(cfg.seed, images, device)  # the same noise at each snapshot
    x_init = torch.stack([sde.prior_sample(network.data_shape, generator, device) for generator in generators])
    score_fn = guided_score(network, labels)
    try:
        out = create_sampler(cfg.sampling, sde)(score_fn, x_init, generators, give_up)
    except _StoppedError:
        return None
    return to_uint8(out.samples), None if out.trajectory is None else to_uint8(out.trajectory)

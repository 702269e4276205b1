"""The directory of drawn images: what is in it, and the work of run_vis.py, which fills it."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets import load_configured
from evaluation.generate import GeneratedBatch, ImageSampler, generate_batches, pin_models
from evaluation.output_dir import open_output, write_arrays
from models.io.run_files import pinned_checkpoint
from sampling.figures import data_rows, save_figure
from sampling.images import save_each, save_grid, save_trajectory
from utils.distributed import Distributed
from utils.errors import InputError, writing
from utils.signals import StopSignals

log = logging.getLogger(__name__)

FREE = (
    "ngpus",
    "debug",
    "max_image_size",
    "eval.rounds",
    "data.root",
)  # may change when drawing continues: no sample depends on them


def generate_images(cfg: DictConfig, out_dir: Path, distributed: Distributed, stop: StopSignals | None = None) -> int:
    """Draw the batches that are not in ``out_dir``/images yet.

    Args:
        cfg: configuration of run_vis.py.
        out_dir: output directory.
        distributed: this process among those that share the images.
        stop: not used: what is drawn is kept, so a signal may end the process at any moment.

    Returns:
        0: no signal stopped it.

    Raises:
        InputError: naming the key or file at fault.
    """
    distributed.use_step_timeout()

    def find() -> list[Any]:
        return list(pinned_checkpoint(cfg.load_dir, cfg.eval.ckpt))

    cfg.device = distributed.device.type
    cfg.load_dir, cfg.eval.ckpt = distributed.run_on_main(find)
    pin_models(cfg, distributed)
    sampler = ImageSampler(cfg, distributed.device)
    if cfg.eval.save_images and not sampler.is_image:
        shape = sampler.net.data_shape
        raise InputError(f"eval.save_images={cfg.eval.save_images}: samples of shape {shape} are no images")
    folder = out_dir / "images"
    with ExitStack() as context, logging_redirect_tqdm():

        def open_here() -> list[int]:
            context.enter_context(open_output(folder, cfg, "vis", FREE))
            return missing_batches(folder, cfg.eval.rounds)

        batches = distributed.run_on_main(open_here)
        log.info("%d of %d rounds to draw in %s", len(batches), cfg.eval.rounds, folder)
        in_turn = len(sampler.classes or sampler.conditions)
        columns = in_turn if in_turn > 1 else None
        show_data = cfg.data.root is not None and distributed.rank == 0
        reference = _data_of(sampler.run, cfg.data.root) if show_data else None
        for r, drawn in generate_batches(sampler, batches, cfg.eval.batch_size, distributed):
            if drawn is not None:
                if sampler.given is not None and sampler.is_image:
                    numbers = range(r * cfg.eval.batch_size, (r + 1) * cfg.eval.batch_size)
                    with writing(folder):
                        save_grid(sampler.given.picture(numbers), folder / f"given_{r}.png", columns)
                if not sampler.is_image:
                    names = sampler.run.data.get("columns")
                    save_figure(folder / f"samples_{r}.png", drawn.pixels, reference, names)
                path = save_batch(folder, r, drawn, columns, cfg.eval.save_images)
                log.info("round %d: %d images, %d evaluations each, in %s", r, len(drawn.pixels), drawn.nfe, path)
                if share := 100 * drawn.clipped.mean():
                    log.info("round %d: %.3g %% of the values were outside [0, 1] and are clipped", r, share)
    return 0


def _data_of(run: DictConfig, root: str) -> np.ndarray:
    """Return rows of the data of a run in the file ``root``.

    Raises:
        InputError: if the run is not one of rows in a file, or they are not there.
    """
    if run.data.dataset != "array":
        raise InputError(f"data.root={root}: only for a run with data=array, whose figures show the data")
    held_out = None if run.data.get("held_out") is None else root  # the training split is all of the file then
    return data_rows(load_configured(run.data, True, "", root, held_out))


def missing_batches(folder: Path, count: int) -> list[int]:
    """List which of the batches 0 .. count - 1 are not in ``folder``."""
    # The folder is listed, because a network file system remembers for a while that a file was not there.
    present = {path.name for path in folder.iterdir()}
    return [r for r in range(count) if arrays_path(folder, r).name not in present]


def save_batch(folder: Path, r: int, drawn: GeneratedBatch, columns: int | None, each: bool) -> Path:
    """Write batch ``r``: its grid, single images if ``each``, a trajectory if there is one, and last its arrays.

    The arrays appear whole: their presence says that the batch is done. Samples that are no images have no grid here.

    Returns:
        The path of the grid, or of the arrays if there is none.
    """
    image = drawn.pixels.dtype == np.uint8
    path = folder / f"samples_{r}.png" if image else arrays_path(folder, r)
    with writing(path):
        if image:
            save_grid(drawn.pixels, path, columns)
        if each:
            save_each(drawn.pixels, folder / "single", first=r * len(drawn.pixels))
        if r == 0 and drawn.trajectory is not None:
            save_trajectory(drawn.trajectory, folder / "trajectory")
    arrays = {"samples": drawn.pixels}
    if drawn.labels is not None:
        arrays["labels" if drawn.labels.ndim == 1 else "cond"] = drawn.labels
    if drawn.clipped.any():
        arrays["clipped"] = drawn.clipped
    write_arrays(arrays_path(folder, r), arrays)
    return path


def arrays_path(folder: Path, r: int) -> Path:
    """Return the file of batch ``r``: ``samples``, the pixels of a ``GeneratedBatch``.

    Also its ``labels``, if there are classes, or ``cond``, if there is a condition, and ``clipped``, if a value was
    clipped.
    """
    return folder / f"samples_{r}.npz"

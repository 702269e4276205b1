"""The space that a run needs on its disk, and the check that there is enough to begin."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from training.checkpoint import Checkpoints, TrainState
from utils.errors import InputError

log = logging.getLogger(__name__)

PER_TENSOR = 300  # bytes that a file needs for a tensor beside its numbers
UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


@dataclass(frozen=True)
class DiskNeed:
    """Sizes in bytes of what a run still has to write, estimated from its tensors.

    Attributes:
        resume: size of a checkpoint to resume from.
        snapshot: size of a checkpoint that is kept.
        num_snapshots: number of checkpoints that are still to be written and stay.
        num_averages: number of snapshots of power-function averages still to be written.
        averages: size of one of these.
        total: all of these, in addition to what is there.
    """

    resume: int
    snapshot: int
    num_snapshots: int
    num_averages: int
    averages: int
    total: int


def estimate_need(cfg: DictConfig, state: TrainState, run_dir: Path) -> DiskNeed:
    """Estimate the space that a run of ``cfg`` in ``run_dir`` needs from the step of ``state`` to its end."""
    options, trained = cfg.training, sum(p.nbytes for p in state.trainable)
    numel = sum(map(Tensor.numel, state.trainable))
    weights = list(state.model.network.state_dict().values())
    lengths = len(options.ema_lengths) if state.power_ema else 0
    light = sum(tensor.nbytes for tensor in weights) + trained + PER_TENSOR * (len(weights) + len(state.trainable))
    heavy = 2 * trained + 8 * lengths * numel + PER_TENSOR * (3 + lengths) * len(state.trainable)
    resume, snapshot = light + heavy, light + heavy * options.keep_optimizer

    written = _multiples(state.step, options.n_iters, options.snapshot_freq)
    kept = len(written)
    if options.keep_last is not None:
        forever = kept // options.keep_every if options.keep_every else 0
        kept = min(kept, options.keep_last + 1 + forever)  # 1: the best
    averaged = _multiples(state.step, options.n_iters, options.ema_snapshot_freq) | written if lengths else set()
    averages = 2 * lengths * numel

    checkpoints = Checkpoints(run_dir)
    there = [path.stat().st_size for path in (checkpoints.resume_path, checkpoints.previous_path) if path.exists()]
    total = kept * snapshot + len(averaged) * averages + max(0, 2 * resume - sum(there))
    return DiskNeed(resume, snapshot, kept, len(averaged), averages, total)


def check_free_space(run_dir: Path, need: DiskNeed) -> None:
    """Compare the free space of the disk with what a run needs.

    If it is less than the run needs in all, that is a warning.

    Raises:
        InputError: if it is less than one checkpoint to resume from and one to keep.
    """
    free, least = free_space(run_dir), need.resume + need.snapshot
    if free < least:
        raise InputError(
            f"{run_dir}: its disk has {in_units(free)} free, less than the {in_units(least)} of a checkpoint to resume "
            "from and one to keep: make room, or choose another hydra.run.dir"
        )
    if free < need.total + need.resume:  # a checkpoint replaces another one when it is complete
        log.warning(
            "the disk of %s has %s free, and the run is to write %s: see training.snapshot_freq, training.keep_last "
            "and training.keep_optimizer",
            *(run_dir, in_units(free), in_units(need.total + need.resume)),
        )


def free_space(run_dir: Path) -> int:
    """Return the free space of the disk with the directory of a run, in bytes."""
    return shutil.disk_usage(run_dir).free


def in_units(size: float) -> str:
    """Return a size in bytes as text, such as "3.4 MB"."""
    unit = next((unit for unit, factor in UNITS.items() if size >= factor), "kB")
    return f"{size / UNITS[unit]:,.1f} {unit}"


def _multiples(step: int, last: int, freq: int) -> set[int]:
    """Return the steps after ``step`` up to ``last`` that are due: multiples of ``freq``, and the last."""
    return {*range((step // freq + 1) * freq, last, freq), *([last] if last > step else [])}

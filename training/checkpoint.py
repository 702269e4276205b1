"""Checkpoints of a run and snapshots of its averages: the training state they contain, writing and reading."""

import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from losses import LossHistory
from models import ScoreModel
from models.io.checkpoint import check_whole, read_checkpoint
from models.io.ema_snapshots import FOLDER, SnapshotInfo, encode_snapshot, read_info, snapshot_path, snapshot_steps
from models.io.run_files import CheckpointRecord, best_of, checkpoint_numbers, read_records, record_path
from models.io.weights import check_finite
from training.ema import EMA, PowerEMA
from training.optimizer import load_optimizer
from utils.errors import InputError, TrainingError, replacing, writing

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Everything that a run carries from one step to the next; the rest follows from (seed, step).

    Attributes:
        model: model in training.
        ema: average of its weights.
        optimizer: optimiser of the trainable parameters.
        scaler: gradient scaler of fp16; disabled in other precisions.
        trainable: parameters of the model that the optimiser updates.
        history: moments of the loss by noise level, for a loss that follows them; None otherwise.
        step: number of updates made.
        images: number of images in the batches of these updates.
        power_ema: averages to reconstruct others from; None without ``training.ema_snapshot_freq``.
    """

    model: ScoreModel
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    trainable: list[nn.Parameter]
    history: LossHistory | None = None
    step: int = 0
    images: int = 0
    power_ema: PowerEMA | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values under the published keys, with ``images``, and what else there is."""
        state = {
            "model": self.model.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "images": self.images,
            "scaler": self.scaler.state_dict() or None,  # None if disabled
            **({} if self.power_ema is None else {"power_ema": self.power_ema.state_dict()}),
        }
        return state if self.history is None else {**state, "loss_history": self.history.state_dict()}

    def check_finite(self) -> None:
        """Raise TrainingError if a weight is not finite: such a state must not replace a good checkpoint."""
        for name, p in self.model.network.named_parameters():
            if not torch.isfinite(p).all():
                raise TrainingError(
                    f"weight {name} not finite at step {self.step}; the last checkpoint is untouched. "
                    "Try a lower optim.lr or a longer optim.warmup"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.model.network.load_state_dict(state["model"])
        self.ema.model.network.load_state_dict(state["model"])  # frozen parameters and buffers have no average
        self.ema.load_state_dict(state["ema"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.history is not None and "loss_history" in state:  # a run that did without has to collect one
            self.history.load_state_dict(state["loss_history"])
        if self.power_ema is not None:
            if "power_ema" not in state:
                raise InputError(
                    "training.ema_snapshot_freq: it has no power-function averages, which begin with the first step; "
                    "use training.ema_snapshot_freq=null"
                )
            self.power_ema.load_state_dict(state["power_ema"])
        self.step, self.images = state["step"], state.get("images", 0)  # 0: of an earlier version


class Checkpoints:
    """The files of a run with its state: snapshots to keep, two files to resume from, and averages of the weights.

    Snapshots, ``checkpoints/checkpoint_N.pth``, are never overwritten; ``checkpoints.json`` records their steps and
    held-out losses, also of those that ``prune`` has deleted. The files to resume from are
    ``checkpoints-meta/checkpoint.pth``, the newest, and ``checkpoint_previous.pth``, in case the newest is damaged.
    Snapshots of the power-function averages alone are ``ema/step_N.safetensors``.

    Args:
        run_dir: directory of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"
        self.run_dir = run_dir
        self.resume_path = run_dir / "checkpoints-meta" / "checkpoint.pth"
        self.previous_path = self.resume_path.with_name("checkpoint_previous.pth")
        self._next = 1
        self._newest_damaged = False
        self._last_averages = 0  # step up to which the snapshots of averages are those of this course of the run

    def save_snapshot(self, state: TrainState, eval_loss: float, keep_optimizer: bool = True) -> tuple[Path, bool]:
        """Write the next snapshot, under the next free number, and record its held-out loss.

        After a kill, the same snapshot, bit for bit, may exist already; then it is not written again.

        Args:
            state: state of the run.
            eval_loss: loss of the averaged weights on held-out images.
            keep_optimizer: whether the snapshot has all of the state, to resume from, or network and EMA only.

        Returns:
            The path of the snapshot, and whether it is new.
        """
        contents = state.state_dict()
        if not keep_optimizer:
            contents = {key: contents[key] for key in ("model", "ema", "step")}
        is_new = True
        while is_new and (path := self._snapshot_path(self._next)).exists():
            is_new = not _has_contents(path, contents)
            self._next += 1
        if is_new:
            save_atomically(contents, path)
            self._next += 1
        self._record(self._next - 1, CheckpointRecord(state.step, eval_loss))
        return path, is_new

    def _record(self, number: int, record: CheckpointRecord) -> None:
        records = read_records(self.run_dir)
        if records.get(number) != record:
            contents = {n: vars(one) for n, one in sorted({**records, number: record}.items())}
            with replacing(record_path(self.run_dir)) as temporary:
                temporary.write_text(json.dumps(contents, indent=1) + "\n")

    def prune(self, keep_last: int | None, keep_every: int | None) -> None:
        """Delete snapshots, except the best by held-out loss; call it when the run can be resumed from its last step.

        Those without a record, of a run of an earlier version, stay.

        Args:
            keep_last: number of the last snapshots to keep; None for all.
            keep_every: snapshots whose number is a multiple of it stay as well.
        """
        if keep_last is None:
            return
        numbers = checkpoint_numbers(self.folder)
        records = read_records(self.run_dir)
        present = {number: records[number] for number in numbers if number in records}
        kept = {*numbers[-keep_last:], best_of(present), self._next - 1}
        for number in present.keys() - kept:
            if keep_every is None or number % keep_every:
                try:
                    self._snapshot_path(number).unlink(missing_ok=True)
                except OSError as error:
                    log.warning("%s cannot be deleted: %s", self._snapshot_path(number), error.strerror)

    def save_averages(self, state: TrainState) -> Path:
        """Write a snapshot of the power-function averages.

        After a kill, the same snapshot, bit for bit, may exist already; then no file is written. If another one does,
        all later snapshots are of another course of the run, and are moved to ``ema/before_STEP``.

        Returns:
            The path of the snapshot.
        """
        assert state.power_ema is not None, "the run tracks averages"
        path = snapshot_path(self.run_dir, state.step)
        encoded, info = encode_snapshot(state.step, state.power_ema.averages, state.model.network.state_dict())
        later = [step for step in snapshot_steps(self.run_dir) if step > self._last_averages]
        if later and not (later[0] == state.step and _has_info(path, info)):
            number, kept = 1, path.with_name(f"before_{state.step}")
            while kept.exists():
                number += 1
                kept = path.with_name(f"before_{state.step}_{number}")
            log.warning("the snapshots in %s from step %d on are of other weights: see %s", path.parent, later[0], kept)
            with writing(kept):
                kept.mkdir()
                for step in later:
                    stale = snapshot_path(self.run_dir, step)
                    stale.rename(kept / stale.name)
        if not path.exists():
            _write_atomically(lambda file: file.write(encoded), path)
        self._last_averages = state.step
        return path

    def save_for_resume(self, state: TrainState) -> None:
        """Write the checkpoint to resume from, and keep the previous one unless it is damaged."""
        save_atomically(state.state_dict(), self.resume_path, None if self._newest_damaged else self.previous_path)
        self._newest_damaged = False

    def clear(self) -> None:
        """Remove the temporary files of an interrupted save; the caller must have locked the run directory."""
        for folder in (self.folder, self.resume_path.parent, self.run_dir / FOLDER):
            for stale in folder.glob(".*.tmp"):
                stale.unlink()

    def exist(self) -> bool:
        """Return whether the run has a checkpoint to resume from, damaged or not."""
        return bool(self._candidates())

    def _candidates(self) -> list[Path]:
        """List the checkpoints to resume from, the newest first."""
        # after a kill between the two renames of a save, only the previous one exists
        paths = [path for path in (self.resume_path, self.previous_path) if path.exists()]
        return paths or [self._snapshot_path(number) for number in reversed(checkpoint_numbers(self.folder))]

    def find(self) -> Path | None:
        """Find the newest undamaged checkpoint to resume from; None if the run has no checkpoint.

        If the files to resume from are missing, as in a partial copy of a run, a snapshot takes their place.

        Raises:
            InputError: if there are checkpoints but all are damaged.
        """
        damaged = None
        for path in self._candidates():
            try:
                check_whole(path)
            except InputError as error:
                damaged = damaged or error
                log.warning("%s", error)
                continue
            if damaged:
                log.warning("resuming from the checkpoint before it, %s", path)
                self._newest_damaged = path == self.previous_path
            return path
        if damaged:
            raise damaged
        return None

    def restore(self, state: TrainState, path: Path) -> None:
        """Restore ``state`` from the checkpoint ``path``.

        Raises:
            InputError: if the checkpoint does not fit the model or holds values that are not finite.
        """
        checkpoint = read_checkpoint(path)
        if "step" in checkpoint and "optimizer" not in checkpoint:
            raise InputError(
                f"{path} has no optimizer state (training.keep_optimizer=false), and there is no checkpoints-meta/ to "
                f"resume from: start another run from its weights by init_from={path}"
            )
        try:
            state.load_state_dict(checkpoint)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} does not fit this run: {reason}") from error
        _check_finite(state, path)
        self._last_averages = state.step
        # Numbering continues after snapshots up to this step, also deleted ones: later ones, from before a kill, will
        # be written again.
        records, numbers = read_records(self.run_dir), checkpoint_numbers(self.folder)
        for number in sorted({*records, *numbers}, reverse=True):
            snapshot = self._snapshot_path(number)
            step = _step_of(snapshot) if number in numbers else records[number].step
            if path == snapshot or step <= state.step:
                self._next = number + 1
                break

    def _snapshot_path(self, number: int) -> Path:
        return self.folder / f"checkpoint_{number}.pth"


def _check_finite(state: TrainState, path: Path) -> None:
    """Raise InputError, naming the tensor, if a number in ``state`` is not finite."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.model.network.named_parameters()}
    moments = state.optimizer.state.items()
    tensors = {
        **{name: parameter for parameter, name in names.items()},
        **{f"the average of {name}": average for name, average in state.ema.model.network.named_parameters()},
        **{f"{key} of {names[parameter]}": value for parameter, kept in moments for key, value in kept.items()},
        **{
            f"{key} of the loss history": value
            for key, value in (state.history.state_dict() if state.history else {}).items()
        },
    }
    for length, averages in state.power_ema.averages.items() if state.power_ema else ():
        tensors |= {f"the average of {name} of relative length {length}": value for name, value in averages.items()}
    for name, tensor in tensors.items():
        check_finite(tensor, name, path)


def _step_of(path: Path) -> float:
    """Return the step of a checkpoint; infinity, with a warning, if it cannot be read."""
    try:
        step = read_checkpoint(path).get("step")
    except InputError as error:
        log.warning("%s; it stays as it is", error)
        return math.inf
    return step if isinstance(step, int) else math.inf


def _has_contents(path: Path, contents: dict[str, Any]) -> bool:
    """Return whether a checkpoint equals ``contents``, bit for bit."""
    try:
        return _equal(read_checkpoint(path), contents)
    except InputError:
        return False


def _has_info(path: Path, info: SnapshotInfo) -> bool:
    """Return whether a snapshot of averages has the same lengths, checksums and step."""
    try:
        return read_info(path) == info
    except InputError:
        return False


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b.cpu())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and a == b


def save_atomically(contents: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write ``contents`` so that ``path`` is, at any moment, either the complete old file or the complete new one.

    Args:
        contents: dictionary to save.
        path: path of the file.
        previous: path that the old file is renamed to; None to replace it.

    Raises:
        TrainingError: if the file cannot be written; the old file is then unchanged.
    """
    _write_atomically(lambda file: torch.save(contents, file), path, previous)


def _write_atomically(write: Callable[[BinaryIO], object], path: Path, previous: Path | None = None) -> None:
    """Write a file as ``save_atomically`` does, with what ``write`` writes to a file object."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch wraps the exceptions of the file object
        reason = next((str(e) for e in (error, error.__context__) if isinstance(e, OSError)), str(error))
        raise TrainingError(f"{path} cannot be saved: {reason}; the checkpoint before it is whole") from error
    finally:
        temporary.unlink(missing_ok=True)

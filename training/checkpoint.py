"""Checkpoints of a run: what is in them, and how they reach the disk."""

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import ScoreNetwork
from models.io.files import check_whole, checkpoint_numbers, read_checkpoint
from models.io.pretrained import check_finite
from training.ema import EMA
from training.optimizer import load_optimizer
from utils.errors import InputError, TrainingError

log = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Everything that a run carries from one step to the next; the rest follows from (seed, step)."""

    model: ScoreNetwork
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the loss in fp16; does nothing in other precisions
    trainable: list[nn.Parameter]  # of the model: what the optimiser moves
    step: int = 0  # updates made

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python under the published keys."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "scaler": self.scaler.state_dict() or None,  # None where it does nothing
        }

    def check_finite(self) -> None:
        """Raise TrainingError if a weight is not finite: such a state must not replace a good checkpoint."""
        for name, p in self.model.named_parameters():
            if not torch.isfinite(p).all():
                raise TrainingError(
                    f"weight {name} not finite at step {self.step}; the last checkpoint is untouched. "
                    "Try a lower optim.lr or a longer optim.warmup"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self.ema.network.load_state_dict(state["model"])  # what is not trained has no average
        self.ema.load_state_dict(state["ema"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


class Checkpoints:
    """The files of a run: ``checkpoints/checkpoint_N.pth`` to keep, and two in ``checkpoints-meta/`` to resume from.

    ``checkpoint.pth`` is the newest, ``checkpoint_previous.pth`` the one before, should that be damaged. Those to keep
    are never written over, whoever made them.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"
        self.resume_path = run_dir / "checkpoints-meta" / "checkpoint.pth"
        self.previous_path = self.resume_path.with_name("checkpoint_previous.pth")
        self._next = 1
        self._newest_damaged = False

    def save_snapshot(self, state: TrainState) -> tuple[Path, bool]:
        """Write the next checkpoint to keep, under a number that is free.

        After a kill it may be there already, with the same numbers, bit for bit; then it stays.

        Returns:
            Its path, and whether it is new.
        """
        contents = state.state_dict()
        while (path := self._kept(self._next)).exists():
            self._next += 1
            if _holds(path, contents):
                return path, False
        save_atomically(contents, path)
        self._next += 1
        return path, True

    def save_for_resume(self, state: TrainState) -> None:
        """Write the checkpoint that the run resumes from, and keep the one before, unless that is a damaged one."""
        save_atomically(state.state_dict(), self.resume_path, None if self._newest_damaged else self.previous_path)
        self._newest_damaged = False

    def clear(self) -> None:
        """Remove what a kill in the middle of a save left behind; the caller must hold the run's directory."""
        for folder in (self.folder, self.resume_path.parent):
            for stale in folder.glob(".*.tmp"):
                stale.unlink()

    def find(self) -> Path | None:
        """The checkpoint to resume from: the newest that is whole; None if the run has not begun.

        Without those to resume from, as in a copy of a run, it is one of those to keep, which hold the same.

        Raises:
            InputError: if there are some, all of them damaged.
        """
        damaged = None
        # a kill between the two moves of a save leaves the previous one alone
        paths = [path for path in (self.resume_path, self.previous_path) if path.exists()]
        for path in paths or [self._kept(number) for number in reversed(checkpoint_numbers(self.folder))]:
            try:
                check_whole(path)
            except InputError as error:
                damaged = damaged or error
                log.warning("%s", error)
                continue
            if damaged:
                log.warning("going on from the one before, %s", path)
                self._newest_damaged = bool(paths)
            return path
        if damaged:
            raise damaged
        return None

    def restore(self, state: TrainState, path: Path) -> None:
        """Put ``state`` where the run was when it wrote ``path``.

        Raises:
            InputError: if the checkpoint is of another network.
        """
        checkpoint = read_checkpoint(path)
        try:
            state.load_state_dict(checkpoint)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} does not fit this run: {reason}") from error
        _check_finite(state, path)
        # Numbers go on after what is older than this state; a newer one was made before a kill and comes again.
        for number in reversed(checkpoint_numbers(self.folder)):
            if path == self._kept(number) or _step_of(self._kept(number)) <= state.step:
                self._next = number + 1
                break

    def _kept(self, number: int) -> Path:
        return self.folder / f"checkpoint_{number}.pth"


def _check_finite(state: TrainState, path: Path) -> None:
    """Raise InputError, naming the tensor, if a weight, an average or a moment that was read is not finite."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.model.named_parameters()}
    moments = state.optimizer.state.items()
    tensors = {
        **{name: parameter for parameter, name in names.items()},
        **{f"the average of {name}": average for name, average in state.ema.network.named_parameters()},
        **{f"{key} of {names[parameter]}": value for parameter, kept in moments for key, value in kept.items()},
    }
    for name, tensor in tensors.items():
        check_finite(tensor, name, path)


def _step_of(path: Path) -> float:
    """The step at which a checkpoint was written; infinity, and a warning, if it cannot be read."""
    try:
        step = read_checkpoint(path).get("step")
    except InputError as error:
        log.warning("%s; it stays as it is", error)
        return math.inf
    return step if isinstance(step, int) else math.inf


def _holds(path: Path, contents: dict[str, Any]) -> bool:
    """Whether a checkpoint holds the same numbers as ``contents``, bit for bit."""
    try:
        return _same(read_checkpoint(path), contents)
    except InputError:
        return False


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b.cpu())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


def save_atomically(contents: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write ``contents`` so that ``path`` holds, at any moment, the old file or the new one, whole.

    Args:
        previous: where the old file is moved before the new one takes its place; by default it is lost.

    Raises:
        TrainingError: if the disk does not take it; what was there is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch wraps what its file raises
        reason = next((str(e) for e in (error, error.__context__) if isinstance(e, OSError)), str(error))
        raise TrainingError(f"{path} cannot be saved: {reason}; the checkpoint before it is whole") from error
    finally:
        temporary.unlink(missing_ok=True)

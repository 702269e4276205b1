"""Checkpoints of a run: what is in them, and how they reach the disk."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errors import InputError, TrainingError
from models.files import checkpoint_numbers, read_checkpoint
from training.ema import EMA


@dataclass
class TrainState:
    """Everything that a run carries from one step to the next; the rest follows from (seed, step)."""

    model: nn.Module
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
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(options)  # betas, eps, weight decay: of the configuration, which may have changed
        if self.scaler.is_enabled() and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


class Checkpoints:
    """The files of a run: ``checkpoints/checkpoint_N.pth`` to keep, ``checkpoints-meta/checkpoint.pth`` to resume."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"
        self.resume_path = run_dir / "checkpoints-meta" / "checkpoint.pth"
        self._next = 1

    def save_snapshot(self, state: TrainState) -> Path:
        """Write the next checkpoint to keep; returns its path."""
        path = self.folder / f"checkpoint_{self._next}.pth"
        save_atomically(state.state_dict(), path)
        self._next += 1
        return path

    def save_for_resume(self, state: TrainState) -> None:
        """Replace the checkpoint that the run resumes from."""
        save_atomically(state.state_dict(), self.resume_path)

    def restore(self, state: TrainState) -> bool:
        """Put ``state`` where the run left off; False if it has not begun.

        Clears what a kill in the middle of a save left behind, so the caller must hold the run's directory.

        Raises:
            InputError: if the checkpoint is damaged or of another network.
        """
        for folder in (self.folder, self.resume_path.parent):
            for stale in folder.glob(".*.tmp"):
                stale.unlink()
        if not self.resume_path.exists():
            return False
        checkpoint = read_checkpoint(self.resume_path)
        try:
            state.load_state_dict(checkpoint)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.resume_path} does not fit this run: {reason}") from error
        # Numbers go on after what is older than this state; a newer one was made before a kill and comes again.
        for number in reversed(checkpoint_numbers(self.folder)):
            if read_checkpoint(self.folder / f"checkpoint_{number}.pth")["step"] <= state.step:
                self._next = number + 1
                break
        return True


def save_atomically(contents: dict[str, Any], path: Path) -> None:
    """Write ``contents`` so that ``path`` holds, at any moment, the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""What a run says while it goes: metrics.jsonl, and a progress bar or lines of text."""

import json
import logging
import math
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from errors import TrainingError, writing
from training.processes import World

log = logging.getLogger(__name__)


class Metrics:
    """Appends one JSON object a line to ``metrics.jsonl`` and shows it.

    On a terminal there is a progress bar; elsewhere a line of text for each entry.

    Args:
        path: the file; entries after ``step`` (made before a kill, to be made again) are dropped.
        step: where the run is.
        total: where it goes.

    Raises:
        CleanError: if the disk does not take them.
    """

    def __init__(self, path: Path, step: int, total: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError, TypeError, IndexError):
                    pass  # the last line of a killed run may be half written
        self._path = path
        temporary = path.with_suffix(".tmp")
        with writing(path):
            temporary.write_text("".join(kept))
            temporary.replace(path)
            self._file = path.open("a")
        self._total = total
        self._bar = tqdm(total=total, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def advance(self) -> None:
        """Count one step."""
        self._bar.update()

    def write(self, entry: dict[str, float]) -> None:
        """Record ``entry``, which has at least ``step``."""
        with writing(self._path):
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        shown = {key: f"{value:.4g}" for key, value in entry.items() if key != "step"}
        if self._bar.disable:
            log.info("step %d/%d  %s", entry["step"], self._total, "  ".join(f"{k} {v}" for k, v in shown.items()))
        else:
            self._bar.set_postfix(shown, refresh=False)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        with suppress(OSError):  # what a full disk did not take is written once more, in vain
            self._file.close()


class NoMetrics:
    """What ``Metrics`` is in a process that does not write."""

    def advance(self) -> None:
        """Nothing."""

    def write(self, entry: dict[str, float]) -> None:
        """Nothing."""

    def __enter__(self) -> "NoMetrics":
        return self

    def __exit__(self, *_) -> None:
        pass


class Window:
    """Means over the steps since the last entry, kept on the device so that a step does not wait for the host.

    The first step that is not finite is remembered with the noise levels of its images.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        self._bad = torch.full((3,), math.inf, device=world.device)  # step, lowest sigma, minus the highest
        self._steps = self._images = 0
        self._start = time.perf_counter()

    def add(self, step: int, losses: Tensor, sigma: Tensor, grad_norm: Tensor, images: int) -> None:
        """Count a step.

        Args:
            losses, sigma: of this process's images, (share,).
            grad_norm: of the gradient of all.
            images: how many all are.
        """
        self._sums += torch.stack([losses.sum() / images, grad_norm / self._world.size])
        self._steps += 1
        self._images += images
        bad = ~torch.isfinite(losses)
        bad = torch.where(bad.any(), bad, ~torch.isfinite(grad_norm))  # all of them, if only the gradient is bad
        where = torch.where(bad, torch.stack([sigma, -sigma]), math.inf).amin(1)
        found = torch.cat([torch.full_like(where[:1], step), where])
        self._bad = torch.where(bad.any() & self._bad[0].isinf(), found, self._bad)

    def summary(self) -> dict[str, float]:
        """Mean ``loss`` and ``grad_norm``, and ``images_per_sec``.

        Raises:
            TrainingError: if any of the losses or norms was not finite.
        """
        loss, grad_norm = (self._world.total(self._sums) / self._steps).tolist()
        if not math.isfinite(loss + grad_norm):
            self._fail()
        seconds = time.perf_counter() - self._start
        return {"loss": loss, "grad_norm": grad_norm, "images_per_sec": self._images / seconds}

    def _fail(self) -> None:
        found = self._world.all(self._bad)
        step = found[:, 0].min()
        low, high = found[found[:, 0] == step, 1:].amin(0).tolist()
        raise TrainingError(
            f"loss or gradient not finite at step {int(step)}, for images with sigma from {low:.3g} to {-high:.3g}; "
            "the last checkpoint is untouched. Try a lower optim.lr, a longer optim.warmup or a smaller optim.grad_clip"
        )

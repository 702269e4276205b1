"""What a run says while it goes: metrics.jsonl, and a progress bar or lines of text."""

import json
import logging
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from errors import TrainingError

log = logging.getLogger(__name__)


class Metrics:
    """Appends one JSON object a line to ``metrics.jsonl`` and shows it.

    On a terminal there is a progress bar; elsewhere a line of text for each entry.

    Args:
        path: the file; entries after ``step`` (made before a kill, to be made again) are dropped.
        step: where the run is.
        total: where it goes.
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
        temporary = path.with_suffix(".tmp")
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
        self._file.close()


class Window:
    """Means over the steps since the last entry, kept on the device so that a step does not wait for the host."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, device=device)
        self._steps = self._images = 0
        self._start = time.perf_counter()

    def add(self, loss: Tensor, grad_norm: Tensor, images: int) -> None:
        """Count one step."""
        self._sums += torch.stack([loss.detach(), grad_norm])
        self._steps += 1
        self._images += images

    def summary(self, step: int) -> dict[str, float]:
        """Mean ``loss`` and ``grad_norm``, and ``images_per_sec``; ``step`` is the last one counted.

        Raises:
            TrainingError: if any of the losses or norms was not finite (a sum remembers it).
        """
        loss, grad_norm = (self._sums / self._steps).tolist()
        if not math.isfinite(loss + grad_norm):
            raise TrainingError(
                f"loss or gradient not finite between steps {step - self._steps + 1} and {step} (mean loss {loss}, "
                f"gradient norm {grad_norm}); the last checkpoint is untouched. Try a lower optim.lr, a longer "
                "optim.warmup or a smaller optim.grad_clip"
            )
        seconds = time.perf_counter() - self._start
        return {"loss": loss, "grad_norm": grad_norm, "images_per_sec": self._images / seconds}

"""Output of the metrics of a run: metrics.jsonl, a progress bar or lines of text, and the logger."""

import json
import logging
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig
from tqdm import tqdm

from training.loggers import open_logger
from training.plots import draw_losses
from utils.errors import replacing, writing
from utils.metrics_file import read_entries

log = logging.getLogger(__name__)

UNSHOWN = ("step", "loss_by_sigma", "memory_gib")  # keys left out of the progress bar and the log


class MetricWriter:
    """A writer of entries to RUN/metrics.jsonl, one JSON object a line, to the screen and to the run's logger.

    On a terminal there is a progress bar; elsewhere a line of text for each entry.

    Args:
        cfg: configuration of the run.
        run_dir: directory of the run, RUN.
        step: number of steps done; later entries in metrics.jsonl, which a killed run wrote, are dropped.
        progress: whether there is a progress bar; None: on a terminal.

    Raises:
        UserError: if the file cannot be written.
    """

    def __init__(self, cfg: DictConfig, run_dir: Path, step: int, progress: bool | None = None) -> None:
        self._folder, self._path = run_dir, run_dir / "metrics.jsonl"
        self._logger = open_logger(cfg, run_dir, step)
        kept = [entry for entry in read_entries(self._path) if entry["step"] <= step]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        with writing(self._path):
            self._file = self._path.open("a")
        self._total = cfg.training.n_iters
        hidden = None if progress is None else not progress
        self._bar = tqdm(total=self._total, initial=step, unit="step", disable=hidden, dynamic_ncols=True)

    def advance(self) -> None:
        """Count one step."""
        self._bar.update()

    def write(self, entry: dict[str, Any]) -> None:
        """Record ``entry``, which has ``step`` and numbers or lists of numbers."""
        with writing(self._path):
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        scalars = {key: value for key, value in entry.items() if key != "step" and not isinstance(value, list)}
        quarters = {f"loss_by_sigma/{k}": value for k, value in enumerate(entry["loss_by_sigma"], 1) if value}
        self._logger.scalars(entry["step"], scalars | quarters)
        shown = {key: f"{value:.4g}" for key, value in entry.items() if key not in UNSHOWN}
        if self._bar.disable:
            log.info("step %d/%d  %s", entry["step"], self._total, "  ".join(f"{k} {v}" for k, v in shown.items()))
        else:
            self._bar.set_postfix(shown, refresh=False)

    def snapshot(self) -> None:
        """Draw RUN/loss.png from all entries so far."""
        draw_losses(read_entries(self._path), self._folder / "loss.png")

    def samples(self, step: int, path: Path) -> None:
        """Pass a grid of samples to the logger."""
        self._logger.image(step, "samples", path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        for close in (self._file.close, self._logger.close):
            try:
                close()
            except OSError as error:  # closing writes once more what a full disk has refused
                if kind is None:
                    log.warning("not all that %s shows was written: %s", self._folder, error)


class NullMetricWriter:
    """A stand-in for ``MetricWriter`` in processes other than process 0, which write nothing."""

    def advance(self) -> None:
        """Do nothing."""

    def write(self, entry: dict[str, Any]) -> None:
        """Discard the entry."""

    def snapshot(self) -> None:
        """Do nothing."""

    def samples(self, step: int, path: Path) -> None:
        """Discard the samples."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

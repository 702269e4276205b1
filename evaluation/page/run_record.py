"""What a run directory says about a run: configuration, metrics by step, checkpoints, data, snapshots of samples."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from datasets.shape import is_image
from evaluation.page.json_file import read_object
from models.io.config import load_config, read_yaml
from models.io.published import is_published
from models.io.run_files import CheckpointRecord, best_of, checkpoint_numbers, read_records
from sampling.auto import Tuned, read_tuned
from sde import create_process
from utils.errors import InputError
from utils.metrics_file import read_entries
from utils.options import plain

MAX_METRICS_BYTES = 2**28
LARGEST_STEP = 2**53
ANY_IMAGE_SIZE = 2**31  # the page makes nothing of the size that a configuration states

Points = tuple[list[int], list[float]]
"""Steps, and a number for each."""


@dataclass(frozen=True)
class RunRecord:
    """The files of a run, which may still be training.

    Attributes:
        path: directory of the run, as it was given.
        cfg: configuration.
        entries: entries of metrics.jsonl, by step.
        records: step and held-out loss of each checkpoint, also of deleted ones, by number.
        present: numbers of the checkpoints that are there.
        data: contents of data.json; None if there is none.
        source: contents of init_from.json; None if there is none.
        snapshots: folders of the samples drawn while training, by step.
        tuned: samplers that ``sampling.tune`` found, by their number of evaluations.
    """

    path: Path
    cfg: DictConfig
    entries: list[dict[str, Any]]
    records: dict[int, CheckpointRecord]
    present: list[int]
    data: dict[str, Any] | None
    source: dict[str, Any] | None
    snapshots: dict[int, Path]
    tuned: dict[int, Tuned]

    @property
    def name(self) -> str:
        """Return the name of the run on the page."""
        return str(self.path)

    @property
    def is_image(self) -> bool:
        """Return whether its samples are images."""
        return is_image(self.cfg.data)

    @cached_property
    def options(self) -> dict[str, Any]:
        """Return the configuration as plain values."""
        return plain(self.cfg)

    def option(self, section: str, key: str, kind: type) -> Any:
        """Return the value of an option if it is of the type ``kind``, and otherwise None: nothing has checked it."""
        part = self.options.get(section)
        value = part.get(key) if isinstance(part, dict) else None
        return value if isinstance(value, kind) and not (kind is int and isinstance(value, bool)) else None

    @property
    def step(self) -> int:
        """Return the last step with metrics; 0 before the first."""
        return self.entries[-1]["step"] if self.entries else 0

    @property
    def total(self) -> int | None:
        """Return the number of steps of the whole run."""
        return self.option("training", "n_iters", int)

    @property
    def best(self) -> int | None:
        """Return the number of the checkpoint with the lowest held-out loss among those that are there."""
        return best_of({number: self.records[number] for number in self.present if number in self.records})

    def column(self, key: str, place: int | None = None) -> Points:
        """Return a metric by step, where it is a finite number.

        Args:
            key: name of the metric.
            place: index in a metric that is a list.
        """
        steps, values = [], []
        for entry in self.entries:
            value = entry.get(key)
            if place is not None:
                value = value[place] if isinstance(value, list) and place < len(value) else None
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
                steps.append(entry["step"])
                values.append(float(value))
        return steps, values

    def seconds(self, step: int) -> float | None:
        """Estimate the duration of training up to ``step``, without evaluations and drawing, from the speed."""
        batch_size = self.option("training", "batch_size", int)
        if not batch_size or not 0 < batch_size < LARGEST_STEP:
            return None
        seconds, before = 0.0, 0
        for entry in self.entries:
            if entry["step"] > step:
                break
            speed = entry.get("images_per_sec")
            if not isinstance(speed, float) or not 0 < speed < math.inf:
                return None
            seconds += (entry["step"] - before) * batch_size / speed
            before = entry["step"]
        return seconds if before == step and seconds < 1e12 else None


def read_run(path: Path) -> RunRecord:
    """Read the files of a run.

    Args:
        path: directory of the run.

    Raises:
        InputError: naming what is missing, damaged, or no run of this code.
    """
    if path.is_file():
        raise InputError(f"{path} is a file: give the directory of a run")
    cfg = load_config(path, ANY_IMAGE_SIZE)
    if is_published(read_yaml(path / ".hydra/config.yaml")):
        raise InputError(
            f"{path} holds what the published code wrote or reads, such as an export: it has no metrics, give a run"
        )
    metrics = path / "metrics.jsonl"
    try:
        if metrics.exists() and not (metrics.is_file() and metrics.stat().st_size <= MAX_METRICS_BYTES):
            raise InputError(f"{metrics} is not a file, or larger than {MAX_METRICS_BYTES} bytes")
        entries = [entry for entry in read_entries(metrics) if 0 <= entry["step"] < LARGEST_STEP]
    except OSError as error:
        raise InputError(f"{metrics} cannot be read: {error.strerror}") from error
    data, source = (path / f"{name}.json" for name in ("data", "init_from"))
    record = RunRecord(
        path,
        cfg,
        sorted(entries, key=lambda entry: entry["step"]),
        read_records(path),
        checkpoint_numbers(path / "checkpoints"),
        read_object(data, ("num_classes", "class_names", "training", "held_out")) if data.exists() else None,
        read_object(source) if source.exists() else None,
        _find_snapshots(path / "samples"),
        read_tuned(path, create_process(cfg.sde)),
    )
    if record.data is not None:
        _check_data(record.data, data)
    return record


def _check_data(data: dict[str, Any], path: Path) -> None:
    """Raise InputError unless the values that the page shows are what data.json holds."""
    counts = [part.get("images") if isinstance(part, dict) else None for part in (data["training"], data["held_out"])]
    names = data["class_names"]
    if not (_all(counts, int) and isinstance(names, list) and _all(names, str) and _all([data["num_classes"]], int)):
        raise InputError(f"{path} is not the record of a data set")


def _all(values: Sequence[Any], kind: type) -> bool:
    return all(isinstance(value, kind) for value in values)


def _find_snapshots(folder: Path) -> dict[int, Path]:
    """Find the folders iter_STEP with complete samples, by step."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(r"iter_(0|[1-9]\d{0,14})", path.name)
        if match and (path / "sample_0.npy").is_file() and (path / "sample_0.png").is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))

"""A number for each of many images, computed in parts that survive an interruption."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from evaluation.output_dir import write_arrays
from evaluation.workers import MakeWorker, Worker, parallel_map


def resumable_map(
    folder: Path,
    name: str,
    worker: Worker,
    make: MakeWorker | None,
    cfg: DictConfig,
    images: int,
    batch_size: int,
    devices: Sequence[torch.device],
    steps: int,
) -> dict[str, np.ndarray]:
    """Arrays with a row for each of the images 0 .. images - 1, which also go to ``folder``/NAME.npz.

    Args:
        folder: where they go; the parts that are there already are not computed again.
        name: of the metric.
        worker, make, cfg, devices: as for ``parallel_map``; it makes of a range of images {array: rows}. For one device
            ``make`` may be None.
        images, batch_size: how many there are, and in a part.
        steps: that the worker reports for a part.
    """
    path, parts_dir = folder / f"{name}.npz", folder / f".{name}"
    if not path.exists():
        tasks = [range(first, min(first + batch_size, images)) for first in range(0, images, batch_size)]
        files = [parts_dir / f"{task.start}.npz" for task in tasks]
        missing = [k for k, file in enumerate(files) if not file.exists()]
        parts_dir.mkdir(parents=True, exist_ok=True)
        total, left = len(tasks) * steps, len(missing) * steps
        with tqdm(total=total, initial=total - left, desc=name, unit="step", disable=None) as bar:
            results = parallel_map(worker, make, cfg, [tasks[k] for k in missing], devices, bar)
            for k, arrays in zip(missing, results, strict=True):
                write_arrays(files[k], arrays)
        parts = [_read(file) for file in files]
        write_arrays(path, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    shutil.rmtree(parts_dir, ignore_errors=True)
    return _read(path)


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)

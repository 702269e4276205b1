"""Resumable batched map over images, and its progress bar."""

import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.metric import PerImage, Rows
from evaluation.output_dir import write_arrays
from utils.distributed import Distributed


def progress_bar(distributed: Distributed, total: int, description: str, initial: int = 0) -> tqdm:
    """Create a progress bar of this process's steps, which only process 0 shows, on a terminal."""
    hidden = None if distributed.rank == 0 else True
    return tqdm(total=total, initial=initial, desc=description, unit="step", disable=hidden)


def resumable_map(folder: Path, per_image: PerImage, distributed: Distributed) -> Rows | None:
    """Compute the rows of all images of ``per_image`` and write them to ``folder``/NAME.npz.

    Each process computes every ``world_size``-th batch from ``rank`` on and writes it to ``folder``/.NAME; batches that
    exist already are not computed again. Process 0 concatenates them.

    Returns:
        The rows in process 0; None in the others.
    """
    path, parts_dir = folder / f"{per_image.name}.npz", folder / f".{per_image.name}"
    n, size, steps = per_image.num_images, per_image.batch_size, per_image.num_steps
    tasks = [range(first, min(first + size, n)) for first in range(0, n, size)]

    def find_missing() -> list[int]:
        if path.exists():
            return []
        parts_dir.mkdir(parents=True, exist_ok=True)
        # The folder is listed, because a network file system caches for a while that a file did not exist.
        present = {entry.name for entry in parts_dir.iterdir()}
        return [k for k, task in enumerate(tasks) if f"{task.start}.npz" not in present]

    missing = distributed.run_on_main(find_missing)
    if missing:
        own = [tasks[k] for k in missing[distributed.rank :: distributed.world_size]]
        done = (len(tasks) - len(missing)) * steps // distributed.world_size
        with progress_bar(distributed, done + len(own) * steps, per_image.name, done) as bar:
            for task in own:
                write_arrays(parts_dir / f"{task.start}.npz", per_image(task, bar.update))
        distributed.all_reduce_max(0)  # until all parts are written
    if distributed.rank > 0:
        return None
    if not path.exists():
        parts = [_read(parts_dir / f"{task.start}.npz") for task in tasks]
        write_arrays(path, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    shutil.rmtree(parts_dir, ignore_errors=True)
    return _read(path)


def _read(path: Path) -> Rows:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)

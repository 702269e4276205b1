"""The folder that drawn images go to: what is in it, and what is still to draw."""

from pathlib import Path

from evaluation.generate import GeneratedBatch
from evaluation.output_dir import write_arrays
from sampling.images import save_each, save_grid, save_trajectory
from utils.errors import writing


def missing_batches(folder: Path, rounds: int) -> list[int]:
    """Which of the rounds 0 .. rounds - 1 are not in ``folder``."""
    return [r for r in range(rounds) if not arrays_path(folder, r).exists()]


def save_batch(folder: Path, r: int, drawn: GeneratedBatch, columns: int | None, each: bool) -> Path:
    """Write round ``r``: its grid, single images if ``each``, a trajectory if there is one, and last its arrays.

    The arrays appear whole: their presence says that the round is done.

    Returns:
        The path of the grid.
    """
    path = folder / f"samples_{r}.png"
    with writing(path):
        save_grid(drawn.pixels, path, columns)
        if each:
            save_each(drawn.pixels, folder / "single", first=r * len(drawn.pixels))
        if r == 0 and drawn.trajectory is not None:
            save_trajectory(drawn.trajectory, folder / "trajectory")
    arrays = {"samples": drawn.pixels} | ({} if drawn.labels is None else {"labels": drawn.labels})
    write_arrays(arrays_path(folder, r), arrays)
    return path


def arrays_path(folder: Path, r: int) -> Path:
    """The file of round ``r``: samples uint8 (N, H, W, C), and labels if there are classes."""
    return folder / f"samples_{r}.npz"

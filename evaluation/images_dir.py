"""The directory that drawn images go to: what is in it, and what is still to draw."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf

from errors import InputError
from evaluation.drawing import Drawn
from locks import exclusive
from sampling.images import save_each, save_grid, save_trajectory

FREE = ("device", "ngpus", "debug", "eval.rounds")  # what may change when drawing goes on: no image depends on it


@contextmanager
def open_images(folder: Path, cfg: DictConfig) -> Iterator[None]:
    """Hold ``folder`` for this process, if it is new or holds images drawn with the same configuration.

    Writes ``vis.yaml``, the configuration.

    Raises:
        InputError: naming the key that differs; or if the folder holds something else, or another process has it.
    """
    if folder.exists() and not (folder / "vis.yaml").is_file() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and run_vis.py did not write it: choose another hydra.run.dir")
    with exclusive(folder, "another process draws there"):
        path = folder / "vis.yaml"
        wanted = _flat(OmegaConf.to_container(cfg))
        if path.exists():
            try:
                held = _flat(OmegaConf.to_container(OmegaConf.load(path)))
            except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, AttributeError) as error:
                raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
            for key in sorted((held.keys() | wanted.keys()) - set(FREE)):
                if held.get(key) != wanted.get(key):
                    raise InputError(
                        f"{folder} exists, drawn with {key}={held.get(key)}, not {wanted.get(key)}: choose another "
                        "hydra.run.dir, or leave it to the default, a new directory"
                    )
        temporary = folder / f".vis.{os.getpid()}.tmp"
        temporary.write_text(OmegaConf.to_yaml(cfg))
        os.replace(temporary, path)
        yield


def missing_rounds(folder: Path, rounds: int) -> list[int]:
    """Which of the rounds 0 .. rounds - 1 are not in ``folder``."""
    return [r for r in range(rounds) if not _arrays(folder, r).exists()]


def save_round(folder: Path, r: int, drawn: Drawn, columns: int | None, each: bool) -> Path:
    """Write round ``r``: its grid, single images if ``each``, a trajectory if there is one, and last its arrays.

    The arrays appear whole: their presence says that the round is done.

    Returns:
        The path of the grid.
    """
    path = folder / f"samples_{r}.png"
    save_grid(drawn.pixels, path, columns)
    if each:
        save_each(drawn.pixels, folder / "single", first=r * len(drawn.pixels))
    if r == 0 and drawn.trajectory is not None:
        save_trajectory(drawn.trajectory, folder / "trajectory")
    arrays = {"samples": drawn.pixels} | ({} if drawn.labels is None else {"labels": drawn.labels})
    temporary = folder / f".samples_{r}.tmp"
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, _arrays(folder, r))
    return path


def _arrays(folder: Path, r: int) -> Path:
    return folder / f"samples_{r}.npz"


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """{"a.b": value} of a tree of dictionaries."""
    leaves = {}
    for name, value in tree.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves

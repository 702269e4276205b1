"""The checkpoints of a run directory by their numbers: ``RUN/checkpoints/checkpoint_N.pth``."""

import re
from pathlib import Path

from utils.errors import InputError

CHECKPOINT = r"checkpoint_(0|[1-9][0-9]*)\.pth"


def checkpoint_numbers(folder: Path) -> list[int]:
    """List the numbers of the files checkpoint_N.pth in ``folder``, ascending; other files are ignored."""
    names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    matches = (re.fullmatch(CHECKPOINT, name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def find_checkpoint(run_dir: Path, ckpt: int = -1, key: str = "eval.ckpt") -> Path:
    """Find checkpoint number ``ckpt`` of a run, or the one with the highest number for -1.

    Raises:
        InputError: if the run has no such checkpoint, naming the ``key`` that the number is from.
    """
    folder = Path(run_dir) / "checkpoints"
    numbers = checkpoint_numbers(folder)
    if not numbers:
        raise InputError(f"{folder} has no checkpoint_*.pth")
    number = numbers[-1] if ckpt == -1 else ckpt
    if number not in numbers:
        raise InputError(f"{folder} has no checkpoint_{number}.pth: {key} can be {', '.join(map(str, numbers))}")
    return folder / f"checkpoint_{number}.pth"


def named_checkpoint(path: str | Path, ckpt: int = -1) -> tuple[Path, int]:
    """Split the path of a checkpoint, RUN/checkpoints/checkpoint_N.pth, into RUN and N.

    Args:
        path: path of a checkpoint; any other path is returned unchanged, with ``ckpt``.
        ckpt: number of the checkpoint according to another option; -1 if that leaves it open.

    Raises:
        InputError: if the two numbers differ, or the file does not lie in the ``checkpoints`` of a run.
    """
    path = Path(path)
    match = re.fullmatch(CHECKPOINT, path.name)
    if not match or not (path.is_file() or path.parent.name == "checkpoints"):
        if path.is_file() and path.suffix != ".safetensors":
            raise InputError(f"{path} is a file: give a run, RUN/checkpoints/checkpoint_N.pth, or a .safetensors file")
        return path, ckpt
    folder, number = path.absolute().parent, int(match[1])
    if folder.name != "checkpoints":
        raise InputError(f"{path} is not below the checkpoints/ of a run, whose .hydra/config.yaml says what it is of")
    if ckpt not in (-1, number):
        raise InputError(f"checkpoint {ckpt} is asked for, but {path} is checkpoint {number}: leave one of them out")
    return path.parent.parent if path.parent.name == "checkpoints" else folder.parent, number


def pinned_checkpoint(path: str | Path, ckpt: int, key: str = "eval.ckpt") -> tuple[str, int]:
    """Return the run and the number of the checkpoint that two options name now, while training may write more.

    Args:
        path: run, one of its checkpoints, or another path, which is returned with ``ckpt``.
        ckpt: number of the checkpoint; -1 for the highest.
        key: option of ``ckpt``, for the error message.

    Raises:
        InputError: if there is no such checkpoint.
    """
    path, ckpt = named_checkpoint(path, ckpt)
    if (path / "checkpoints").is_dir():
        ckpt = int(find_checkpoint(path, ckpt, key).stem.split("_")[1])
    return str(path), ckpt

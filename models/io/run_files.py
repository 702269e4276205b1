"""The checkpoints of a run directory, ``RUN/checkpoints/checkpoint_N.pth``: their numbers, and the best of them."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.io.hub import local_path, pinned_path
from utils.ema_options import CheckpointNumber
from utils.errors import InputError

CHECKPOINT = r"checkpoint_(0|[1-9][0-9]*)\.pth"
MAX_RECORD_BYTES = 2**24
EXPORTED = "model.safetensors"  # weights in an exported directory


@dataclass(frozen=True)
class CheckpointRecord:
    """What RUN/checkpoints.json says of a checkpoint, also of one that has been deleted.

    Attributes:
        step: its step.
        eval_loss: loss of its averaged weights on held-out images.
    """

    step: int
    eval_loss: float


def checkpoint_numbers(folder: Path) -> list[int]:
    """List the numbers of the files checkpoint_N.pth in ``folder``, ascending; other files are ignored."""
    names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    matches = (re.fullmatch(CHECKPOINT, name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def record_path(run_dir: Path) -> Path:
    """Return the file with the records of the checkpoints of a run."""
    return run_dir / "checkpoints.json"


def read_records(run_dir: Path) -> dict[int, CheckpointRecord]:
    """Read the records of the checkpoints of a run by their numbers; none for a run that has no such file.

    Raises:
        InputError: if the file cannot be read.
    """
    path = record_path(run_dir)
    if not path.exists():
        return {}
    try:
        if not path.is_file() or path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError("it is not a file, or too long")
        contents = json.loads(path.read_text())
        return {int(n): CheckpointRecord(int(one["step"]), float(one["eval_loss"])) for n, one in contents.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as the losses of the checkpoints ({' '.join(str(error).split())})"
        ) from error


def best_of(records: Mapping[int, CheckpointRecord]) -> int | None:
    """Return the number with the lowest loss, the first of equal ones; None if no loss is finite."""
    finite = [number for number in sorted(records) if math.isfinite(records[number].eval_loss)]
    return min(finite, key=lambda number: records[number].eval_loss, default=None)


def find_checkpoint(run_dir: Path, ckpt: CheckpointNumber = -1, key: str = "eval.ckpt") -> Path:
    """Find checkpoint number ``ckpt`` of a run.

    Args:
        run_dir: directory of the run.
        ckpt: number; -1 for the highest, ``best`` for that with the lowest held-out loss among those that are there.
        key: option that ``ckpt`` is from.

    Raises:
        InputError: naming the ``key``, if the run has no such checkpoint, or no losses of its checkpoints.
    """
    folder = Path(run_dir) / "checkpoints"
    numbers = checkpoint_numbers(folder)
    if not numbers:
        raise InputError(f"{folder} has no checkpoint_*.pth")
    if ckpt == "best":
        records = read_records(Path(run_dir))
        best = best_of({number: records[number] for number in numbers if number in records})
        if best is None:
            known = ", ".join(map(str, numbers))
            raise InputError(
                f"{key}=best: {record_path(Path(run_dir))} has no held-out loss of these checkpoints, as in a run "
                f"of an earlier version: give a number, {known}"
            )
        return folder / f"checkpoint_{best}.pth"
    number = numbers[-1] if ckpt == -1 else ckpt
    if number not in numbers:
        raise InputError(f"{folder} has no checkpoint_{number}.pth: {key} can be {', '.join(map(str, numbers))}")
    return folder / f"checkpoint_{number}.pth"


def named_checkpoint(path: str | Path, ckpt: CheckpointNumber = -1) -> tuple[Path, CheckpointNumber]:
    """Split the path of a checkpoint, RUN/checkpoints/checkpoint_N.pth, into RUN and N; download a model on the Hub.

    Args:
        path: path of a checkpoint; any other path is returned with ``ckpt``, that of an exported directory as the path
            of its file of weights, and hf://USER/NAME as that of its directory in the cache (see ``local_path``).
        ckpt: number of the checkpoint according to another option, or ``best``; -1 if that leaves it open.

    Raises:
        InputError: if the two numbers differ, or the file does not lie in the ``checkpoints`` of a run.
    """
    path = local_path(path)
    if (path / EXPORTED).is_file() and not (path / ".hydra").exists():
        path = path / EXPORTED
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


def pinned_checkpoint(path: str | Path, ckpt: CheckpointNumber, key: str = "eval.ckpt") -> tuple[str, CheckpointNumber]:
    """Return the run and the number of the checkpoint that two options name now, while training may write more.

    Args:
        path: run, one of its checkpoints, or another path, which is returned with ``ckpt``; of a model on the Hub the
            result names the commit.
        ckpt: number of the checkpoint; see ``find_checkpoint``.
        key: option of ``ckpt``, for the error message.

    Raises:
        InputError: if there is no such checkpoint.
    """
    local, ckpt = named_checkpoint(path, ckpt)
    if (local / "checkpoints").is_dir():
        ckpt = int(find_checkpoint(local, ckpt, key).stem.split("_")[1])
    return pinned_path(path, local), ckpt

"""Snapshots of the power-function averages of a run, RUN/ema/step_N.safetensors, and reconstruction from them.

A file has each average of the trained parameters at one step in float16, as ``LENGTH/NAME``, and in its metadata the
step, the lengths, and checksums of the averages and of the weights that the run had at this step.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from models.io.safetensors import digest, read_metadata, read_tensors
from models.io.weights import check_finite, check_tensors
from models.posthoc_ema import coefficients
from utils.ema_options import MAX_LENGTH, MIN_LENGTH
from utils.errors import InputError

log = logging.getLogger(__name__)

FOLDER = "ema"
KEY = "snapshot"  # of the metadata: one key, because the file format does not fix the order of several
MAX_SNAPSHOTS = 1000  # that are read, for which the least-squares problem takes seconds
MAX_LENGTHS = 4
NEGLIGIBLE = 1e-7  # coefficients with which a snapshot is not read
POOR_MATCH = 0.1  # distance of profiles, see posthoc_ema.coefficients, that is warned of


@dataclass(frozen=True)
class SnapshotInfo:
    """What the metadata of a snapshot says.

    Attributes:
        step: step of the averages.
        lengths: relative lengths of the averages.
        model_sha256: checksum of the weights of the run at this step.
        sha256: checksum of the averages.
    """

    step: int
    lengths: tuple[float, ...]
    model_sha256: str
    sha256: str


def snapshot_path(run_dir: Path, step: int) -> Path:
    """Return the path of the snapshot of a step."""
    return run_dir / FOLDER / f"step_{step}.safetensors"


def snapshot_steps(run_dir: Path) -> list[int]:
    """List the steps of the snapshots of a run, ascending; other files are ignored."""
    folder = run_dir / FOLDER
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    matches = (re.fullmatch(r"step_([1-9][0-9]{0,12})\.safetensors", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def encode_snapshot(
    step: int, averages: Mapping[float, Mapping[str, Tensor]], model: Mapping[str, Tensor]
) -> tuple[bytes, SnapshotInfo]:
    """Encode a snapshot; the same averages give the same bytes.

    A tensor with a value beyond the range of float16 is written in float32.

    Args:
        step: step of the averages.
        averages: averages of the trained parameters by relative length and name.
        model: all weights at this step, as in the checkpoint.
    """
    tensors = {f"{length}/{name}": _half(average) for length, own in averages.items() for name, average in own.items()}
    info = SnapshotInfo(step, tuple(averages), model_digest(model), digest("", tensors))
    return save(tensors, metadata={KEY: json.dumps(vars(info))}), info


def model_digest(model: Mapping[str, Tensor]) -> str:
    """Return the checksum of the weights in a checkpoint, by which a snapshot knows its checkpoint."""
    return digest("", {name: tensor.detach().cpu() for name, tensor in model.items()})


def _half(tensor: Tensor) -> Tensor:
    rounded = tensor.detach().to("cpu", torch.float16).contiguous()
    return rounded if torch.isfinite(rounded).all() else tensor.detach().to("cpu", torch.float32).contiguous()


def read_info(path: Path) -> SnapshotInfo:
    """Read the metadata of a snapshot.

    Raises:
        InputError: if the file is damaged, or is no snapshot of the step in its name.
    """
    try:
        values = json.loads(read_metadata(path).get(KEY, ""))
        info = SnapshotInfo(**{**values, "lengths": tuple(values["lengths"])})
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is not a snapshot of EMA weights: its metadata are not those of one") from error
    known = isinstance(info.model_sha256, str) and isinstance(info.sha256, str) and type(info.step) is int
    if not known or snapshot_path(path.parent.parent, info.step).name != path.name:
        raise InputError(f"{path} is not a snapshot of EMA weights of the step in its name")
    numbers = all(type(length) is float and MIN_LENGTH <= length <= MAX_LENGTH for length in info.lengths)
    if not numbers or not 1 <= len(set(info.lengths)) == len(info.lengths) <= MAX_LENGTHS:
        raise InputError(f"{path} is not a snapshot of EMA weights: their lengths are not those of averages")
    return info


def read_averages(path: Path, info: SnapshotInfo, shapes: Mapping[str, Tensor]) -> dict[float, dict[str, Tensor]]:
    """Read the averages of a snapshot, by relative length and name.

    Args:
        path: file of the snapshot.
        info: its metadata.
        shapes: tensors in the shapes of the trained parameters, by name.

    Raises:
        InputError: if the file is damaged or of another network, or a value is not finite.
    """
    tensors = read_tensors(path)
    check_tensors(tensors, {f"{length}/{name}": like for length in info.lengths for name, like in shapes.items()}, path)
    if digest("", tensors) != info.sha256:
        raise InputError(f"{path} is damaged: its checksum is another")
    for name, tensor in tensors.items():
        check_finite(tensor, name, path)
    return {length: {name: tensors[f"{length}/{name}"] for name in shapes} for length in info.lengths}


def find_snapshots(run_dir: Path, step: Any, path: Path) -> list[SnapshotInfo]:
    """Find the snapshots of a run up to a checkpoint, the last of which is of the same step.

    Args:
        run_dir: directory of the run.
        step: step in the checkpoint.
        path: path of the checkpoint, for error messages.

    Raises:
        InputError: if the run has no snapshots, none of this step, or a damaged one.
    """
    folder, steps = run_dir / FOLDER, snapshot_steps(run_dir)
    if not steps:
        raise InputError(f"{folder} has no snapshots: eval.ema needs a run trained with training.ema_snapshot_freq")
    if type(step) is not int or step not in steps:
        raise InputError(f"{folder} has no snapshot of the step of {path}, {step}: eval.ema cannot be had there")
    steps = [own for own in steps if own <= step]
    if len(steps) > MAX_SNAPSHOTS:
        raise InputError(f"{folder} has {len(steps)} snapshots up to step {step}, more than {MAX_SNAPSHOTS}")
    return [read_info(snapshot_path(run_dir, own)) for own in steps]


def check_belongs(run_dir: Path, info: SnapshotInfo, model: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError unless a snapshot was written with the weights ``model`` of the checkpoint ``path``."""
    if info.model_sha256 != model_digest(model):
        snapshot = snapshot_path(run_dir, info.step)
        raise InputError(f"{snapshot} is of other weights than {path}: eval.ema cannot be had there")


def snapshots_digest(infos: Sequence[SnapshotInfo]) -> str:
    """Return the SHA-256 of the checksums of snapshots."""
    return hashlib.sha256("".join(info.sha256 for info in infos).encode()).hexdigest()


def reconstruct(
    run_dir: Path, infos: list[SnapshotInfo], length: float, shapes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Combine snapshots to the average of relative length ``length`` at the step of the last of them.

    Args:
        run_dir: directory of the run.
        infos: snapshots, as ``find_snapshots`` returns them.
        length: relative length of the average.
        shapes: tensors in the shapes of the trained parameters, by name.

    Returns:
        The averages by name, float64.

    Raises:
        InputError: if a snapshot is damaged or of another network.
    """
    stored = [(own, info.step) for info in infos for own in info.lengths]
    found, distance = coefficients(stored, length, infos[-1].step)
    share = dict(zip(stored, found, strict=True))
    text = f"EMA of relative length {length} at step {infos[-1].step} from {len(infos)} snapshots"
    log.info("%s: its profile is matched to %.2g", text, distance)
    if distance > POOR_MATCH:
        log.warning("%s: a poor match, more snapshots or a length nearer to those stored would help", text)
    total = {name: torch.zeros(like.shape, dtype=torch.float64) for name, like in shapes.items()}
    for info in tqdm(infos, "combining EMA snapshots", leave=False, disable=None):
        wanted = {own: share[own, info.step] for own in info.lengths if abs(share[own, info.step]) > NEGLIGIBLE}
        if wanted:
            averages = read_averages(snapshot_path(run_dir, info.step), info, shapes)
            for own, coefficient in wanted.items():
                for name, average in averages[own].items():
                    total[name].add_(average.double(), alpha=float(coefficient))
    return total

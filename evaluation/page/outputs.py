"""Finding the evaluations and drawings of runs, the directories that run_eval.py and run_vis.py write."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.page.json_file import read_object
from models.io.config import read_yaml
from utils.errors import InputError, printable
from utils.hub_names import on_hub

log = logging.getLogger(__name__)

MAX_DEPTH = 5  # levels of folders that are searched
MAX_FOLDERS = 20_000


@dataclass(frozen=True)
class Output:
    """A directory that run_eval.py or run_vis.py wrote.

    Attributes:
        folder: directory of ``eval.yaml`` or ``vis.yaml``.
        options: contents of that file.
        results: contents of ``results.json``; empty of a drawing.
    """

    folder: Path
    options: Mapping[str, Any]
    results: Mapping[str, Any]

    @property
    def checkpoint(self) -> str:
        """Describe the weights that were used."""
        part = self.options.get("eval")
        part = part if isinstance(part, dict) else {}
        averaged = f"average of length {part['ema']}" if part.get("ema") is not None else None
        which = "not averaged" if part.get("weights") == "model" else averaged
        return f"checkpoint {part.get('ckpt')}" + (f", {which}" if which else "")


def find_outputs(runs: Sequence[Path], folders: Sequence[Path], name: str, given: bool) -> dict[Path, list[Output]]:
    """Find the outputs of a script for each run, the oldest first.

    An output belongs to the run that its option ``load_dir`` names, or if there is no such model any more, as after a
    run was moved, to the run in whose directory it is.

    Args:
        runs: directories of runs.
        folders: directories to search besides the runs, or single outputs.
        name: ``eval`` or ``vis``.
        given: whether the user named the ``folders``, each of which must then hold an output of one of the runs.

    Raises:
        InputError: for such a folder that does not, or a damaged output of a run.
    """
    real = {run.resolve(): run for run in runs}
    found: dict[Path, dict[Path, Output]] = {run: {} for run in runs}
    for top in (*runs, *folders):
        if top not in runs and not top.is_dir():
            if given:
                raise InputError(f"{top} is not a directory")
            continue
        others, count = [], 0
        for folder in _search(top, f"{name}.yaml"):
            if name == "eval" and not (folder / "results.json").exists():
                continue  # interrupted before its first result
            place = folder.resolve()
            inside = next((run for path, run in real.items() if place.is_relative_to(path)), None)
            try:
                options = read_yaml(folder / f"{name}.yaml")
            except InputError as error:
                if inside or given:
                    raise
                log.warning("left out: %s", printable(str(error)))
                continue
            options = options if isinstance(options, dict) else {}
            load_dir = options.get("load_dir")
            run = _find_run(load_dir, real) or (None if _is_another(load_dir) else inside)
            if run is None:
                others.append(load_dir)
                continue
            count += 1
            results = read_results(folder / "results.json") if name == "eval" else {}
            found[run][place] = Output(folder, options, results)
        if given and top in folders and not count:
            of = f"those in it are of load_dir={others[0]}" if others else f"it has no {name}.yaml of run_{name}.py"
            raise InputError(f"{top} holds no output of {' or '.join(map(str, runs))}: {of}")
    file = "results.json" if name == "eval" else "vis.yaml"
    return {
        run: sorted(outputs.values(), key=lambda output: (output.folder / file).stat().st_mtime)
        for run, outputs in found.items()
    }


def _find_run(load_dir: object, runs: Mapping[Path, Path]) -> Path | None:
    """Return the run that ``load_dir``, which may be anything, is the directory of or lies in."""
    if not isinstance(load_dir, str):
        return None
    try:
        path = Path(load_dir).resolve()
    except (OSError, ValueError, RuntimeError):  # a link to itself, or a character that no path has
        return None
    return next((run for top, run in runs.items() if path.is_relative_to(top)), None)


def _is_another(load_dir: object) -> bool:
    """Return whether ``load_dir`` names a model that is there: a run that was moved is not where it was."""
    try:
        return isinstance(load_dir, str) and (on_hub(load_dir) or Path(load_dir).exists())
    except (OSError, ValueError, RuntimeError):
        return False


def read_results(path: Path) -> dict[str, Any]:
    """Read results.json, and check the numbers of its metrics.

    Raises:
        InputError: if it is damaged.
    """
    results = read_object(path, ("metrics",))
    metrics = results["metrics"]
    for name, metric in metrics.items() if isinstance(metrics, dict) else [("metrics", metrics)]:
        if not isinstance(metric, dict) or not _is_number(metric.get("value")):
            raise InputError(f"{path}: {name!r} has no number as its value")
        if metric.get("error") is not None and not _is_number(metric["error"]):
            raise InputError(f"{path}: the error of {name!r} is no number")
    return results


def _is_number(value: object) -> bool:
    """Return whether a value is a floating-point number, also one that is not finite, or an integer that fits one."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)


def _search(top: Path, name: str) -> Iterator[Path]:
    """Yield the folders in ``top`` that have a file of this name; links are not followed.

    Raises:
        InputError: for too many folders.
    """
    for number, (folder, inner, files) in enumerate(os.walk(top), 1):
        if number > MAX_FOLDERS:
            raise InputError(f"{top} holds more than {MAX_FOLDERS:,} folders: name those of the run")
        depth = len(Path(folder).relative_to(top).parts)
        inner[:] = sorted(inner) if depth < MAX_DEPTH else []
        if name in files:
            yield Path(folder)

"""Runs whose page the tests write: tiny networks, trained, drawn from and evaluated as users do."""

import json
import os
from pathlib import Path

from PIL import Image

from evaluation.page.__main__ import write
from tests.conftest import Scripts, tiny_config
from training.loop import train
from utils.distributed import Distributed

QUICK = ["sampling.method=multistep", "sampling.steps=3", "device=cpu"]


def train_digits(folder: Path, alone: Distributed, *overrides: str) -> Path:
    """Train six steps on the digits, with three snapshots."""
    options = ["training.n_iters=6", "training.snapshot_freq=2", "sampling.method=multistep"]
    train(tiny_config(*options, *overrides), folder, alone)
    return folder


def draw_and_evaluate(scripts: Scripts, place: Path, run: str) -> None:
    """Draw with a trajectory to vis/, and evaluate to eval/, in the folder ``place``."""
    drawn = ["label=[0,1,2]", "eval.batch_size=6", "sampling.trajectory=3", *QUICK]
    measured = ["metrics=[energy_distance,memorization]", "metrics.num_images=20", *QUICK]
    for script, options in (("run_vis.py", drawn), ("run_eval.py", measured)):
        result = scripts(place, script, f"load_dir={run}", *options)
        assert result.returncode == 0, result.stderr


def write_in(place: Path, *paths: str, **options: object) -> str:
    """Write a page from the folder ``place``, as its current one, and return its HTML."""
    before = Path.cwd()
    os.chdir(place)
    try:
        return write([Path(path) for path in paths], **options).read_text()
    finally:
        os.chdir(before)


def set_classes(run: Path, names: list[str]) -> None:
    """Give the classes in data.json these names."""
    record = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**record, "class_names": names}))


def pixels_of(picture: Image.Image) -> bytes:
    """Return the pixels of a picture in RGB."""
    return picture.convert("RGB").tobytes()

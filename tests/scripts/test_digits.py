"""The demo, whole: train by its recipe, draw every class, have the digits read."""

import re
import subprocess
import sys

import numpy as np
import pytest

from evaluation.digits import DigitReader, energy_distance
from tests.conftest import ROOT


@pytest.mark.slow(100)
def test_the_demo_recipe_draws_the_digits_asked_for(script, tmp_path):
    recipe = ["experiment=digits", "hydra.run.dir=run", "training.snapshot_sampling=false"]
    trained = script("run_train.py", *recipe, timeout=900)
    assert trained.returncode == 0, trained.stderr
    labels, steps = "label=[0,1,2,3,4,5,6,7,8,9]", ["sampling.method=multistep", "sampling.steps=20"]
    drawn = script("run_vis.py", "load_dir=run", labels, "w=1", *steps, "hydra.run.dir=drawn")
    assert drawn.returncode == 0, drawn.stderr
    command = [sys.executable, "-m", "evaluation.digits", str(tmp_path / "drawn/images/samples_0.npz")]
    read = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert read.returncode == 0, read.stderr
    share, n = re.search(r"all: ([\d.]+) \+- [\d.]+ of (\d+)", read.stdout).groups()
    assert int(n) == 100
    assert float(share) >= 0.95, read.stdout


def test_the_reader_reads_real_digits():
    reader = DigitReader()
    assert reader.held_out_accuracy > 0.98


def test_energy_distance_of_normal_distributions():
    """Between N(0, 1) and N(m, 1): 2 E|z sqrt 2 + m| - 2 E|z sqrt 2| with z normal; its error is that seen."""
    rng = np.random.default_rng(0)

    def draw(mean):
        return rng.standard_normal((200, 1)) + mean

    assert np.mean([energy_distance(draw(1), draw(0))[0] for _ in range(200)]) == pytest.approx(0.5416, abs=0.03)
    assert np.mean([energy_distance(draw(0), draw(0))[0] for _ in range(200)]) == pytest.approx(0.0, abs=0.01)
    y = draw(0)
    distances, errors = zip(*[energy_distance(draw(1), y) for _ in range(200)], strict=True)
    assert np.std(distances) == pytest.approx(np.mean(errors), rel=0.2)

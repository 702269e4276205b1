"""The demo, whole: train by its recipe, draw every class, have the digits read."""

import re
import subprocess
import sys

from evaluation.digits import DigitReader
from tests.conftest import ROOT


def test_the_demo_recipe_draws_the_digits_asked_for(script, tmp_path):
    recipe = ["experiment=digits", "hydra.run.dir=run", "training.snapshot_sampling=false"]
    trained = script("run_train.py", *recipe, timeout=900)
    assert trained.returncode == 0, trained.stderr
    drawn = script(
        "run_vis.py", "load_dir=run", "label=[0,1,2,3,4,5,6,7,8,9]", "w=1", "eval.batch_size=200", "hydra.run.dir=drawn"
    )
    assert drawn.returncode == 0, drawn.stderr
    command = [sys.executable, "-m", "evaluation.digits", str(tmp_path / "drawn/images/samples_0.npz")]
    read = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert read.returncode == 0, read.stderr
    share, n = re.search(r"all: ([\d.]+) \+- [\d.]+ of (\d+)", read.stdout).groups()
    assert int(n) == 200
    assert float(share) >= 0.95, read.stdout


def test_the_reader_reads_real_digits():
    reader = DigitReader()
    assert reader.held_out_accuracy > 0.98

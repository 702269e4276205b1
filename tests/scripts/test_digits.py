"""The demo, whole: train by its recipe, draw every class, have the digits read."""

import re
import subprocess
import sys

import numpy as np
import pytest

from datasets.images import digits
from evaluation.digits import DigitReader, energy_distance, main
from evaluation.features import to_pixels
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


def run_main(monkeypatch, *paths):
    monkeypatch.setattr(sys, "argv", ["digits", *map(str, paths)])
    main()


def test_digits_without_labels_have_an_energy_distance(tmp_path, monkeypatch, capsys):
    held_out = digits(train=False)
    samples = to_pixels(held_out.data, 17)
    np.savez(tmp_path / "all.npz", samples=samples)
    run_main(monkeypatch, tmp_path / "all.npz")
    said = capsys.readouterr().out
    assert "359 of 359 have no label" in said and "read as asked" not in said
    distance = float(re.search(r"distance of the drawn digits from the held-out ones: (-?[\d.]+)", said)[1])
    x = held_out.data.flatten(1).numpy() / 16
    assert distance == pytest.approx(energy_distance(samples.reshape(359, -1) / 255, x)[0], abs=1e-4)

    np.savez(tmp_path / "asked.npz", samples=samples[:50], labels=held_out.labels[:50].numpy())
    run_main(monkeypatch, tmp_path / "all.npz", tmp_path / "asked.npz")  # the shares are of those with labels
    said = capsys.readouterr().out
    assert re.search(r"all: [\d.]+ \+- [\d.]+ of 50 read as asked", said) and "359 of 409 have no label" in said
    assert "energy distance" in said


def test_what_is_no_file_of_digits_is_one_line(tmp_path, monkeypatch):
    samples = to_pixels(digits(train=False).data, 17)
    np.savez(tmp_path / "labels.npz", samples=samples, labels=np.zeros(3))
    np.savez(tmp_path / "other.npz", images=samples)
    np.savez(tmp_path / "colour.npz", samples=samples.repeat(3, -1))
    for name, message in (
        ("labels.npz", r"labels.npz: labels is float64 \(3,\), need a whole number for each of 359 images"),
        ("other.npz", "other.npz: found arrays images; need samples, or arr_0"),
        ("colour.npz", r"colour.npz holds uint8 \(8, 8, 3\)"),
        ("gone\x1b[2J.npz", r"gone\\x1b\[2J.npz does not exist"),
    ):
        with pytest.raises(SystemExit, match=message) as refusal:
            run_main(monkeypatch, tmp_path / name)
        assert str(refusal.value).isprintable()


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

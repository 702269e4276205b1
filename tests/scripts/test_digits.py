"""The demo: train its recipe, sample every class, and classify the samples."""

import re
import subprocess
import sys

import numpy as np
import pytest

from datasets.images import digits
from evaluation.digits import DigitClassifier, energy_distance, main
from evaluation.features import to_pixels
from tests.conftest import ROOT


@pytest.mark.slow(80)
def test_the_demo_recipe_samples_the_requested_digits(script, tmp_path):
    """Train for half the steps of the recipe, after which all of 500 samples were classified as requested."""
    recipe = ["experiment=digits", "training.n_iters=350", "hydra.run.dir=run", "training.snapshot_sampling=false"]
    trained = script("run_train.py", *recipe, timeout=900)
    assert trained.returncode == 0, trained.stderr
    labels = "label=[0,1,2,3,4,5,6,7,8,9]"
    sampled = script("run_vis.py", "load_dir=run", labels, "w=1", "sampling.method=multistep", "hydra.run.dir=sampled")
    assert sampled.returncode == 0, sampled.stderr
    command = [sys.executable, "-m", "evaluation.digits", str(tmp_path / "sampled/images/samples_0.npz")]
    classified = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert classified.returncode == 0, classified.stderr
    share, n = re.search(r"all: ([\d.]+) \+- [\d.]+ of (\d+)", classified.stdout).groups()
    assert int(n) == 100
    assert float(share) >= 0.95, classified.stdout


def test_classifier_is_accurate_on_real_digits():
    classifier = DigitClassifier()
    assert classifier.held_out_accuracy > 0.98


def run_main(monkeypatch, *paths):
    monkeypatch.setattr(sys, "argv", ["digits", *map(str, paths)])
    main()


def test_digits_without_labels_have_an_energy_distance(tmp_path, monkeypatch, capsys):
    held_out = digits(train=False)
    samples = to_pixels(held_out.data, 17)
    np.savez(tmp_path / "all.npz", samples=samples)
    run_main(monkeypatch, tmp_path / "all.npz")
    said = capsys.readouterr().out
    assert "359 of 359 have no label" in said and "as requested" not in said
    distance = float(re.search(r"distance between sampled and held-out digits: (-?[\d.]+)", said)[1])
    x = held_out.data.flatten(1).numpy() / 16
    assert distance == pytest.approx(energy_distance(samples.reshape(359, -1) / 255, x)[0], abs=1e-4)

    np.savez(tmp_path / "labelled.npz", samples=samples[:50], labels=held_out.labels[:50].numpy())
    run_main(monkeypatch, tmp_path / "all.npz", tmp_path / "labelled.npz")  # the accuracy is of labelled samples
    said = capsys.readouterr().out
    assert re.search(r"all: [\d.]+ \+- [\d.]+ of 50 classified as requested", said)
    assert "359 of 409 have no label" in said
    assert "energy distance" in said


def test_invalid_sample_files_end_in_one_line(tmp_path, monkeypatch):
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
    """Between N(0, 1) and N(m, 1): 2 E|z sqrt 2 + m| - 2 E|z sqrt 2| with z normal."""
    rng = np.random.default_rng(0)

    def draw(mean):
        return rng.standard_normal((200, 1)) + mean

    assert np.mean([energy_distance(draw(1), draw(0))[0] for _ in range(200)]) == pytest.approx(0.5416, abs=0.03)
    assert np.mean([energy_distance(draw(0), draw(0))[0] for _ in range(200)]) == pytest.approx(0.0, abs=0.01)
    y = draw(0)
    distances, errors = zip(*[energy_distance(draw(1), y) for _ in range(200)], strict=True)
    assert np.std(distances) == pytest.approx(np.mean(errors), rel=0.2)

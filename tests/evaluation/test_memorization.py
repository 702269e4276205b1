"""The metric memorization: copies of training data are told from held-out ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from datasets import ImageDataset
from datasets.images import digits
from evaluation import memorization
from evaluation.evaluate import Evaluation
from evaluation.memorization import nearest
from tests.conftest import composed, tiny_config
from tests.evaluation.test_eval import ALONE, PROTOCOL
from training.loop import train
from utils.errors import InputError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of two steps on the digits."""
    path = tmp_path_factory.mktemp("memorization") / "run"
    train(tiny_config("training.snapshot_sampling=false"), path, ALONE)
    return path


def pixels_of(images):
    return (images.data.float() * (255 / 16)).round().to(torch.uint8).movedim(1, -1).numpy()


def evaluate(run_dir, folder, samples, *overrides):
    folder.mkdir(exist_ok=True)
    np.savez(folder / "samples.npz", samples=samples)
    options = [f"metrics.samples_path={folder}/samples.npz", "metrics=[memorization]", "device=cpu", *overrides]
    cfg = composed(*options, f"load_dir={run_dir}", f"dataroot={folder}", name="eval")
    return Evaluation(cfg, ALONE, PROTOCOL)(folder)["metrics"]


def test_copies_of_training_data_are_told_from_held_out_data(run_dir, tmp_path):
    copies, new = pixels_of(digits(train=True))[:200], pixels_of(digits(train=False))[:200]
    of_copies = evaluate(run_dir, tmp_path / "copies", copies)
    assert of_copies["memorization"]["value"] > 0.99
    of_new = evaluate(run_dir, tmp_path / "new", new)
    assert of_new["memorization"]["value"] < 0.01 and of_new["nearer_to_training"]["value"] == 0.0
    half = evaluate(run_dir, tmp_path / "half", np.concatenate([copies, new]))
    assert half["memorization"]["value"] == pytest.approx(
        (of_copies["memorization"]["value"] + of_new["memorization"]["value"]) / 2
    )
    share = half["memorization"]["value"]
    assert half["memorization"]["error"] == pytest.approx((share * (1 - share) / 400) ** 0.5)


def test_data_of_the_same_law_are_as_near_to_both(run_dir, tmp_path):
    """Noise is as near to training as to held-out digits."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    result = evaluate(run_dir, tmp_path / "noise", noise)
    assert result["nearer_to_training"]["value"] == pytest.approx(0.5, abs=4 * 0.025)
    assert result["memorization"]["value"] == 0.0
    assert result["nearer_to_training"]["number_of_each"] == 359


def test_neighbours_are_those_of_scikit_learn(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(memorization, "DATA_AT_ONCE", 100)
    samples = np.random.default_rng(1).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    evaluate(run_dir, tmp_path / "numbers", samples)
    rows = np.load(tmp_path / "numbers/memorization.npz")
    x, real = samples.reshape(300, -1) / 255, digits(train=True).data.flatten(1).numpy() / 16
    distances, numbers = NearestNeighbors(n_neighbors=2).fit(real).kneighbors(x)
    np.testing.assert_allclose(np.stack([rows["nearest"], rows["second"]], 1), distances, rtol=1e-5)
    assert np.array_equal(rows["train"], numbers[:, 0])
    test = digits(train=False).data.flatten(1).numpy() / 16
    np.testing.assert_allclose(rows["held_out"], NearestNeighbors().fit(test).kneighbors(x, 1)[0][:, 0], rtol=1e-5)


def test_the_picture_has_the_nearest_pairs(run_dir, tmp_path):
    copies, new = pixels_of(digits(train=True))[:5], pixels_of(digits(train=False))[:30]
    evaluate(run_dir, tmp_path / "picture", np.concatenate([new, copies]))
    picture = np.asarray(Image.open(tmp_path / "picture/memorization.png"))
    rows, columns, tile = 10, 3, 40
    assert picture.shape == (rows * (tile + 2) + 2, columns * (tile + 2) + 2, 3)
    left, middle = (picture[2 : 2 + tile, 2 + k * (tile + 2) : 2 + k * (tile + 2) + tile] for k in (0, 1))
    assert np.array_equal(left, middle)  # a copy beside its original


def test_a_point_that_occurs_twice_is_no_copy():
    images = ImageDataset(
        torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]), torch.zeros(3, dtype=torch.int64), 1, None
    )
    distances, numbers = nearest(torch.tensor([[1.0, 1.0], [0.1, 0.0]]), images, torch.arange(3), 2)
    assert distances[0].tolist() == [0.0, 0.0] and sorted(numbers[0].tolist()) == [1, 2]
    assert numbers[1, 0] == 0 and distances[1, 0] == pytest.approx(0.1)


def test_results_are_in_the_file(run_dir, tmp_path):
    evaluate(run_dir, tmp_path / "file", pixels_of(digits(train=False))[:20])
    written = json.loads((tmp_path / "file/results.json").read_text())["metrics"]
    assert written["memorization"]["ratio"] == 0.3333 and written["memorization"]["training"] == 1438


def test_too_few_data_are_refused(run_dir, monkeypatch, tmp_path):
    one = ImageDataset(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), 1, None)
    monkeypatch.setattr(memorization, "load_split", lambda *_: one)
    with pytest.raises(InputError, match=r"metrics=\[memorization\]: 1 training samples, need at least 2"):
        evaluate(run_dir, tmp_path / "few", pixels_of(digits(train=False))[:20])

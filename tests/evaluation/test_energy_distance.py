"""The energy distance of drawn samples, and features of patches that need no download."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from datasets import load_images
from datasets.images import digits
from evaluation.evaluate import Evaluation
from evaluation.features import PatchFeatures, create_features, to_pixels
from evaluation.reference import reference_statistics
from tests.conftest import composed, tiny_config
from tests.evaluation.test_eval import ALONE, CHOSEN, CPU, PROTOCOL, sample_metrics
from training.loop import train
from utils.energy_distance import ROWS, energy_distance, mean_distances

QUICK = ["sampling.method=multistep", "sampling.steps=3", "device=cpu", "eval.batch_size=10", "metrics.num_images=30"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of two steps on the digits."""
    path = tmp_path_factory.mktemp("energy") / "run"
    train(tiny_config("training.snapshot_sampling=false"), path, ALONE)
    return path


def evaluate(run_dir, folder, *overrides):
    cfg = composed(*QUICK, f"load_dir={run_dir}", f"dataroot={run_dir.parent / 'data'}", *overrides, name="eval")
    folder.mkdir(exist_ok=True)
    evaluation = Evaluation(cfg, ALONE, PROTOCOL)
    return evaluation(folder), evaluation.inputs.hashes


def test_distances_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.random((2 * ROWS + 3, 40)), rng.random((70, 40))
    y[3] = x[5]
    found = mean_distances(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, cdist(x, y).mean(1), rtol=1e-6)
    n, m = len(x), len(y)
    expected = 2 * cdist(x, y).mean() - cdist(x, x).sum() / (n * (n - 1)) - cdist(y, y).sum() / (m * (m - 1))
    assert energy_distance(x, y)[0] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_metric_is_the_distance_of_the_pixels(run_dir, tmp_path, split):
    held_out, real = digits(False), digits(split == "train")
    np.savez(tmp_path / "drawn.npz", samples=to_pixels(held_out.data, 17)[:300])
    options = ["metrics=[energy_distance]", f"metrics.samples_path={tmp_path / 'drawn.npz'}"]
    results, hashes = evaluate(run_dir, tmp_path / "out", *options, f"metrics.energy_distance.split={split}")
    x = to_pixels(held_out.data, 17)[:300].reshape(300, -1) / 255
    value, error = energy_distance(x, real.data.flatten(1).numpy() / 16)
    found = results["metrics"]["energy_distance"]
    assert (found["value"], found["error"]) == (pytest.approx(value, abs=1e-9), pytest.approx(error, rel=1e-9))
    assert found["drawn"] == 300 and found["real"] == f"{split}, {len(real)} of {len(real)} images"
    assert found["error_is"] == "standard error of 300 drawn images"
    assert results["drawn_images"]["sha256"] == hashes["samples_sha256"] and "features" not in results["drawn_images"]
    assert not (tmp_path / "out/features.npz").exists()


def test_metrics_share_the_drawn_images(run_dir, tmp_path):
    results, _ = evaluate(run_dir, tmp_path / "out", "metrics=[energy_distance,fid]")
    with np.load(tmp_path / "out/energy_distance.npz") as rows:
        assert rows["across"].shape == rows["within"].shape == (30,)
    assert (
        results["metrics"].keys() == {"energy_distance", "fid"} and results["drawn_images"]["features"] == "digits-64"
    )
    drawn = np.concatenate([np.load(tmp_path / f"out/images/samples_{r}.npz")["samples"] for r in range(3)])
    expected, _ = energy_distance(drawn.reshape(30, -1) / 255, digits(False).data.flatten(1).numpy() / 16)
    assert results["metrics"]["energy_distance"]["value"] == pytest.approx(expected, abs=1e-9)
    again, _ = evaluate(run_dir, tmp_path / "out", "metrics=[energy_distance,fid]")
    assert json.dumps(again) == json.dumps(results)


def test_colours_are_compared_with_the_same_colours(tmp_path):
    """The files have the channels last, the data set first."""
    run = tmp_path / "run"
    small = ["data=patches", "data.image_size=8", "training.snapshot_sampling=false"]
    train(tiny_config(*small), run, ALONE)
    real = load_images("patches", False, image_size=8, num_channels=3)
    np.savez(tmp_path / "drawn.npz", samples=to_pixels(real.data, 256))
    options = ["metrics=[energy_distance]", f"metrics.samples_path={tmp_path / 'drawn.npz'}"]
    results, _ = evaluate(run, tmp_path / "out", *options)
    x = real.data.flatten(1).numpy() / 255
    value, _ = energy_distance(x, x)
    assert value < 0, "the same images: the distances within them leave out 0"
    assert results["metrics"]["energy_distance"]["value"] == pytest.approx(value, abs=1e-9)


def test_features_of_patches_need_no_download(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # cannot be called
    features = create_features("patches", None, CPU, 8)
    assert isinstance(features, PatchFeatures)
    real, held_out = (load_images("patches", split, image_size=8, num_channels=3) for split in (True, False))
    known = reference_statistics(real, "patches", features, tmp_path)
    np.testing.assert_allclose(known.mean, 0, atol=1e-6)
    np.testing.assert_allclose(np.diag(known.covariance), 1, atol=1e-5)

    def of(samples):
        return {name: result.value for name, result in sample_metrics(*features(samples), known, CHOSEN).items()}

    noise = of(np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8))
    cats = of(to_pixels(real.data[real.labels == 3][::2], 256))
    pixels = to_pixels(held_out.data[::4], 256)
    good = of(pixels)
    print({"held out": good, "cats": cats, "noise": noise})
    assert good["fid"] < cats["fid"] < noise["fid"]
    assert noise["precision"] < 0.05 and noise["recall"] < 0.01
    assert good["precision"] > 0.5 and cats["recall"] < 0.3
    assert (features(pixels)[1].argmax(1) == held_out.labels[::4]).float().mean() > 0.5

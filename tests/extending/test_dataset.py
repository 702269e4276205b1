"""A data set of vectors, two moons in the unit square, added by one function and one line of the registry."""

import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import make_moons

from datasets import ImageDataset, Loader, data_shape, load_configured
from datasets.registry import DATASETS
from training.data import show_data
from utils.errors import InputError


def two_moons(train: bool, **_: object) -> ImageDataset:
    """Generate 1,000 points of each moon to train on, or 100 that are held out, scaled into the unit square."""
    points, labels = make_moons(2000 if train else 200, noise=0.05, random_state=int(train))
    x = torch.from_numpy(points).float() / 4 + torch.tensor([0.4, 0.4])
    return ImageDataset(x, torch.from_numpy(labels), num_classes=2, levels=None, class_names=("upper", "lower"))


DATA = OmegaConf.create({"dataset": "two_moons", "shape": [2], "classes": True, "num_classes": 2, "random_flip": False})


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(DATASETS, "two_moons", two_moons)


def load(train=True, **changes):
    return load_configured(OmegaConf.merge(DATA, changes), train, "datasets", None)


def test_it_is_loaded_as_its_configuration_says():
    assert data_shape(DATA) == load().shape == (2,) and not load().is_image
    assert (len(load()), len(load(train=False))) == (2000, 200)
    assert load().labels.bincount().tolist() == [1000, 1000]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [3]}, r"has samples of shape \(2,\), but data.shape asks for \(3,\)$"),
        ({"num_classes": 5}, "data.num_classes=5, but data.dataset=two_moons has 2$"),
        ({"random_flip": True}, "data.random_flip=True: data.dataset=two_moons has no images to mirror$"),
        ({"dequantize": True}, "data.dequantize=True: data.dataset=two_moons has no grey levels$"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        load(**changes)


@pytest.mark.parametrize(("value", "text"), [(1.5, "1.5"), (float("nan"), "nan")])
def test_values_outside_of_the_unit_square_are_refused(monkeypatch, value, text):
    def spoilt(train: bool, **_: object) -> ImageDataset:
        images = two_moons(train)
        images.data[7, 1] = value
        return images

    monkeypatch.setitem(DATASETS, "two_moons", spoilt)
    with pytest.raises(InputError, match=rf"data.dataset=two_moons has values from .* to {text}, not in \[0, 1\]"):
        load()


def test_batches_are_its_points_as_they_are():
    images = load()
    loader = Loader(images, 300, seed=1, device="cpu")
    for step in (0, 6, 2):
        x0, labels = loader(step)
        index = loader.indices(step)
        assert x0.shape == (300, 2) and x0.dtype == torch.float32
        assert torch.equal(x0, images.data[index]) and torch.equal(labels, images.labels[index])
    with pytest.raises(ValueError, match=r"samples of shape \(2,\) are no images"):
        Loader(images, 300, seed=1, device="cpu", random_flip=True)


def test_batches_from_a_file_are_those_from_memory(tmp_path):
    images = load()
    np.save(tmp_path / "x.npy", images.data.numpy())
    with open(tmp_path / "x.npy", "rb") as file:
        stored = np.lib.format.open_memmap(tmp_path / "x.npy", mode="c")
        on_disk = ImageDataset(torch.from_numpy(stored), images.labels, 2, levels=None, file=file, offset=stored.offset)
        disk, memory = Loader(on_disk, 300, 1, "cpu", in_memory=0), Loader(images, 300, 1, "cpu")
        for step in (0, 1, 6):
            assert all(map(torch.equal, disk(step), memory(step)))


def test_its_summary_has_ranges_and_no_picture(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = load()
    show_data(images, load(train=False), Loader(images, 300, seed=1, device="cpu"), tmp_path)
    assert "2000 samples to train on, 200 held out, each 2\n" in caplog.text
    assert "2 classes, of 1000 to 1000 samples; continuous values" in caplog.text
    low, high = images.data[:, 1].min(), images.data[:, 1].max()
    assert f"coordinate 1: {low:g} to {high:g}" in caplog.text and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "levels"), [(torch.uint8, None), (torch.float64, None), (torch.float32, 256)])
def test_a_type_that_does_not_fit_the_levels_is_refused(dtype, levels):
    with pytest.raises(ValueError, match=f"data with levels={levels} is torch"):
        ImageDataset(torch.zeros(3, 2, dtype=dtype), torch.zeros(3, dtype=torch.int64), 1, levels=levels)

"""A data set of vectors in one function, and a network for it: trained, resumed, drawn, measured, loaded, exported."""

import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import make_moons
from torch import Tensor, nn

from datasets import ImageDataset, Loader, data_shape, load_configured
from datasets.registry import DATASETS
from evaluation import log_likelihood
from models import Network, load_pretrained
from models.create import NETWORKS
from models.export import export
from models.layers import one_hot
from models.options import Width
from sde import create_process
from tests.extending.conftest import SMALL
from training.data import show_data
from utils.energy_distance import energy_distance
from utils.errors import InputError
from utils.options import NonNegative


def two_moons(train: bool, noise: NonNegative = 0.05, **_: object) -> ImageDataset:
    """Generate 1,000 points of each moon to train on, or 100 that are held out, scaled into the unit square."""
    points, labels = make_moons(2000 if train else 200, noise=noise, random_state=int(train))
    x = torch.from_numpy(points).float() / 4 + torch.tensor([0.4, 0.4])
    return ImageDataset(x, torch.from_numpy(labels), num_classes=2, levels=None, class_names=("upper", "lower"))


class SmallMLP(Network):
    """A network for vectors: three linear maps of x, log sigma and the class."""

    def __init__(self, data_shape: tuple[int, ...], num_classes: int = 0, *, width: Width = 32) -> None:
        super().__init__(data_shape, num_classes)
        (dimension,) = data_shape
        self.layers = nn.Sequential(
            nn.Linear(dimension + 1 + num_classes, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, dimension),
        )  # fmt: skip

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        features = [x - 0.5, sigma[:, None].log()]
        if labels is not None:
            features.append(one_hot(labels, self.num_classes).to(x.dtype))
        return self.layers(torch.cat(features, 1))


ENTRIES = [(DATASETS, "two_moons", two_moons), (NETWORKS, "small_mlp", SmallMLP)]
DATA_FILE = """\
# Two moons in the unit square
dataset: two_moons  # name in datasets/registry.py
shape: [2]          # shape of a sample
classes: true       # true: the network is told the class
num_classes: 2      # number of classes
random_flip: false  # of images only
dequantize: false   # of data with levels only
"""
CONFIGS = [
    ("data/two_moons.yaml", None, DATA_FILE),
    ("model/small_mlp.yaml", None, """\
# A network for vectors
defaults:
  - /base/model@_here_
  - _self_

name: small_mlp
width: 32  # width of its layers
"""),
]  # fmt: skip
DATA = OmegaConf.create(DATA_FILE)
CHOSEN = ["data=two_moons", "model=small_mlp", *SMALL]


def test_a_data_set_of_vectors_in_one_file(extended):
    run = extended.train_and_resume(*CHOSEN, "sampling.trajectory=3")
    folder = run / "samples/iter_4"
    samples = np.load(folder / "sample_0.npy")
    assert samples.shape == (20, 2) and samples.dtype == np.float32 and 0 <= samples.min() < samples.max() <= 1
    assert len(np.unique(samples)) == 40, "not rounded"
    assert {path.name for path in folder.iterdir()} == {"sample_0.npy", "sample_0.png", "trajectory.npy"}
    assert np.load(folder / "trajectory.npy").shape[::2] == (3, 2)
    net, cfg = load_pretrained(run)
    assert net.data_shape == (2,) and net.num_classes == 2 and list(cfg.data.class_names) == ["upper", "lower"]

    drawn = extended.draw("label=lower", "sampling.trajectory=3")
    images = extended.folder / "vis0/images"
    assert drawn.shape == (6, 2) and drawn.dtype == np.float32
    for path in (folder / "sample_0.png", images / "samples_0.png"):  # pair plots
        assert Image.open(path).size == (520, 520)
    assert np.load(images / "samples_0.npz")["labels"].tolist() == [1] * 6 and (images / "trajectory.npy").is_file()
    export(run, extended.folder / "small.safetensors", "safetensors")
    assert np.array_equal(drawn, extended.draw("label=lower", load_dir="small.safetensors"))
    assert "eval.save_images=True: samples of shape (2,) are no images" in extended.refuse(
        "run_vis.py", "load_dir=RUN", "eval.save_images=true", "device=cpu"
    )


def test_its_bits_are_those_of_the_density(extended):
    extended.train_and_resume(*CHOSEN)
    results = extended.measure("metrics.bpd.rtol=1e-5", "metrics.bpd.atol=1e-5", "metrics.bpd.divergence=exact",
                               "metrics.elbo.num_times=2000", "metrics=[bpd,elbo,energy_distance]",
                               "metrics.num_images=50", "sampling.method=multistep", "sampling.steps=3")  # fmt: skip
    net, cfg = load_pretrained(extended.folder / "RUN")
    held_out = load(train=False)
    labels = held_out.labels[:6]
    density = log_likelihood(
        lambda x, sigma: net(x, sigma, labels), create_process(cfg.sde), held_out.data[:6], divergence="exact"
    )
    assert results["bpd"]["value"] == pytest.approx(-density.log_prob.mean().item(), abs=1e-3)
    for name in ("bpd", "elbo"):
        assert results[name]["unit"] == "nats, minus the log density in units of the data"
    assert results["bpd"]["dequantisation"] == "none, the data are continuous"
    assert results["elbo"]["bound_on"] == "density of x"
    assert results["elbo"]["value"] > results["bpd"]["value"] - 4 * results["elbo"]["error"]
    drawn = np.load(extended.folder / "measured/images/samples_0.npz")["samples"]
    expected, _ = energy_distance(drawn[:50], load(train=False).data.numpy())
    assert results["energy_distance"]["value"] == pytest.approx(expected, abs=1e-9)
    assert "RUN has data.shape=[2]: no images" in extended.refuse(
        "run_eval.py", "load_dir=RUN", "metrics=[fid]", "device=cpu"
    )
    assert "metrics.samples_path=x.npz: RUN has data.shape=[2], and only images can be read" in extended.refuse(
        "run_eval.py", "load_dir=RUN", "metrics=[energy_distance]", "metrics.samples_path=x.npz", "device=cpu"
    )


def test_its_options_are_checked_by_the_scripts(extended, monkeypatch):
    train = ("run_train.py", *CHOSEN, "hydra.run.dir=RUN", "training.n_iters=2")
    for wrong, message in [
        ("data.shap=[2]", "data.shap: no such option; did you mean data.shape?"),
        ("data.num_classes=-1", "data.num_classes=-1: need an integer, at least 0, at most 1e+06"),
        ("data=two_moon", "did you mean two_moons?"),
        ("data.shape=[3]", "data.dataset=two_moons has samples of shape (2,), but data.shape asks for (3,)"),
        ("model=adm", "model=adm is for data (C, L), (C, H, W) or (C, D, H, W), and the data have shape (2,)"),
        ("data.noise=-1.0", "data.noise=-1.0: need a number, at least 0"),
    ]:
        assert message in extended.refuse(*train, wrong if "noise" not in wrong else f"+{wrong}")
    extended.succeed(*train)
    extended.edit("num_classes: 2", "num_classes: -1")
    assert "data.num_classes=-1: need" in extended.refuse("run_vis.py", "load_dir=RUN")
    extended.succeed("run_train.py", *CHOSEN, "training.n_iters=0", "hydra.run.dir=shown")
    assert (extended.folder / "shown/data.png").stat().st_size > 5000
    said = extended.run("run_train.py", "--help").stdout
    assert "data.shape=[2]  shape of a sample (a list of 1 to 4 values)" in said and "model=small_mlp" in said


@pytest.fixture(autouse=True)
def _registered(registered):
    pass


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
        ({"class_names": ["a"]}, r"data.class_names=\['a'\], but data.dataset=two_moons has \['upper', 'lower'\]$"),
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


def test_its_summary_has_ranges_and_a_figure(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = load()
    show_data(images, load(train=False), Loader(images, 300, seed=1, device="cpu"), tmp_path)
    assert "2000 samples to train on, 200 held out, each 2\n" in caplog.text
    assert "2 classes, of 1000 to 1000 samples; continuous values" in caplog.text
    low, high = images.data[:, 1].min(), images.data[:, 1].max()
    assert f"coordinate 1: {low:g} to {high:g}" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["data.png"]


@pytest.mark.parametrize(("dtype", "levels"), [(torch.uint8, None), (torch.float64, None), (torch.float32, 256)])
def test_a_type_that_does_not_fit_the_levels_is_refused(dtype, levels):
    with pytest.raises(ValueError, match=f"data with levels={levels} is torch"):
        ImageDataset(torch.zeros(3, 2, dtype=dtype), torch.zeros(3, dtype=torch.int64), 1, levels=levels)

"""Random classes: the frequencies of the training data, which a run records, and uniform ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import datasets.registry
import training.metric_writer
from datasets import ImageDataset
from datasets.images import digits
from evaluation.evaluate import evaluate
from evaluation.generate import ImageSampler
from models.export import export
from models.io.config import load_config, parse_config
from sampling.labels import labels_of
from tests.conftest import composed, tiny_config
from training.loop import MOST_COUNTED, train
from utils.distributed import Distributed
from utils.errors import InputError
from utils.seeds import Stream, derived_seed

CPU = Distributed(torch.device("cpu"))
QUICK = ["training.snapshot_sampling=false", "logger=none"]
FEW = ["sampling.method=multistep", "sampling.steps=1", "eval.batch_size=100"]


@pytest.fixture(autouse=True)
def no_picture_of_losses(monkeypatch):
    monkeypatch.setattr(training.metric_writer, "draw_losses", lambda *_: None)


def rare(train, **_):
    """Return the digits with few zeros, and without nines."""
    data = digits(train)
    number = torch.arange(len(data))
    chosen = (data.labels < 9) & ((data.labels > 0) | (number % 20 == 0))
    return ImageDataset(data.data[chosen], data.labels[chosen], 10, data.levels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train a run on unbalanced digits."""
    folder = tmp_path_factory.mktemp("frequencies") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.registry.DATASETS, "digits", rare)
        train(tiny_config(*QUICK), folder, CPU)
    return folder


def drawn(load_dir, *overrides, numbers=range(400)):
    cfg = composed(f"load_dir={load_dir}", *FEW, *overrides, name="vis")
    sampler = ImageSampler(cfg, CPU.device)
    return labels_of(numbers, sampler.classes, 10, cfg.seed, sampler.counts).numpy()


def test_classes_have_the_frequencies_given_each_a_function_of_its_number():
    counts = [100, 300, 0, 600]
    labels = labels_of(range(20_000), [], 4, 7, counts).numpy()
    found, share = np.bincount(labels, minlength=4) / 20_000, np.array(counts) / 1000
    assert found[2] == 0 and np.all(abs(found - share) <= 4 * np.sqrt(share * (1 - share) / 20_000))
    assert np.array_equal(labels[300:310], labels_of(range(300, 310), [], 4, 7, counts))
    assert not np.array_equal(labels[:100], labels_of(range(100), [], 4, 8, counts))


def test_uniform_classes_are_those_of_earlier_versions():
    labels = labels_of(range(50), [], 10, 3)
    seeds = [derived_seed(3, Stream.LABEL, i) for i in range(50)]
    assert labels.tolist() == [int(np.random.default_rng(seed).integers(10)) for seed in seeds]
    assert torch.equal(labels, labels_of(range(50), [], 10, 3, [1] * 10))


def test_a_run_records_the_counts_of_its_training_data_and_draws_by_them(run, tmp_path, caplog):
    counts = torch.bincount(rare(True).labels, minlength=10).tolist()
    assert list(load_config(run).data.class_counts) == counts and counts[9] == 0 and 0 < counts[0] < 20
    export(run, tmp_path / "model.safetensors", "safetensors")
    export(run, tmp_path / "published")
    expected = labels_of(range(400), [], 10, 0, counts).numpy()
    assert (expected == 9).sum() == 0 and (expected == 0).sum() < 20
    with caplog.at_level("INFO"):
        for name in (run, tmp_path / "model.safetensors", tmp_path / "published"):
            assert np.array_equal(drawn(name), expected)
    assert "no record" not in caplog.text
    assert drawn(run, "label=[3,4]", numbers=range(4)).tolist() == [3, 4, 3, 4]
    uniform = drawn(run, "label_frequencies=uniform")
    assert np.array_equal(uniform, labels_of(range(400), [], 10, 0)) and (uniform == 9).sum() > 20


def test_samples_to_be_measured_have_them_too(run, tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.registry.DATASETS, "digits", rare)
    for name, options in (("data", []), ("uniform", ["label_frequencies=uniform"])):
        measure = ["metrics=[energy_distance]", "metrics.num_images=100", f"dataroot={tmp_path}", *options]
        cfg = composed(f"load_dir={run}", *FEW, *measure, name="eval")
        evaluate(cfg, tmp_path / name, CPU)
        labels = np.load(tmp_path / name / "images/samples_0.npz")["labels"]
        assert np.array_equal(labels, drawn(run, *options, numbers=range(100)))
    described = [
        json.loads((tmp_path / name / "results.json").read_text())["drawn_images"]["label_frequencies"]
        for name in ("data", "uniform")
    ]
    assert described == ["those of the training data", "uniform"]


def test_a_resumed_run_keeps_its_record_and_one_of_an_earlier_version_stays_without(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(datasets.registry.DATASETS, "digits", rare)
    counts = load_config(run).data.class_counts
    later, earlier = (shutil.copytree(run, tmp_path / name) for name in ("later", "earlier"))
    path = earlier / ".hydra/config.yaml"
    old = OmegaConf.load(path)
    del old.data["class_counts"], old["init_from"]
    del old.training["keep_last"], old.training["n_images"], old.optim["schedule"]
    OmegaConf.save(old, path)
    for folder in (later, earlier):
        train(tiny_config(*QUICK, "training.n_iters=3"), folder, CPU)  # the same command, which has no counts
    assert load_config(later).data.class_counts == counts and "class_counts" not in load_config(earlier).data
    with caplog.at_level("INFO"):
        assert np.array_equal(drawn(earlier), labels_of(range(400), [], 10, 0))
    assert f"label=null: {earlier} has no record of its class frequencies: uniform classes" in caplog.text

    monkeypatch.setitem(datasets.registry.DATASETS, "digits", digits)
    train(tiny_config(*QUICK, "training.n_iters=4", "training.allow_data_change=true"), later, CPU)
    assert list(load_config(later).data.class_counts) == digits(True).labels.bincount().tolist()


def test_a_network_without_classes_has_no_record(tmp_path, caplog):
    train(tiny_config(*QUICK, "data.classes=false"), tmp_path, CPU)
    assert "class_counts" not in load_config(tmp_path).data
    with caplog.at_level("INFO"):
        assert ImageSampler(composed(f"load_dir={tmp_path}", *FEW, name="vis"), CPU.device).counts is None
    assert "frequencies" not in caplog.text


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2], r"data\.class_counts has 2 values, 3 in all, for 10 classes"),
        ([0] * 10, r"data\.class_counts has 10 values, 0 in all, for 10 classes"),
        ([-1] * 10, r"data\.class_counts=-1: need an integer, at least 0"),
        (["x"] * 10, r"data\.class_counts=x: need an integer"),
        (3, r"data\.class_counts=3: need a list"),
    ],
)
def test_a_bad_record_is_one_line(run, tmp_path, counts, message):
    bad = shutil.copytree(run, tmp_path / "bad")
    cfg = OmegaConf.load(bad / ".hydra/config.yaml")
    cfg.data.class_counts = counts
    OmegaConf.save(cfg, bad / ".hydra/config.yaml")
    with pytest.raises(InputError, match=message):
        drawn(bad)


def test_names_and_counts_of_as_many_classes_as_are_recorded_are_read(run, tmp_path):
    cfg = OmegaConf.load(run / ".hydra/config.yaml")
    n = MOST_COUNTED
    cfg.data.num_classes, cfg.data.class_counts = n, [1000 + i for i in range(n)]
    cfg.data.class_names = [f"n{i:08d}" for i in range(n)]
    data = parse_config(OmegaConf.to_yaml(cfg), tmp_path).data
    assert len(data.class_names) == len(data.class_counts) == n

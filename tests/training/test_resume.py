"""Resuming a run: the choice of the checkpoint, the check of the data, and no overwritten files."""

import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets.registry
import training.metric_writer
from datasets import ImageDataset
from evaluation.output_dir import write_arrays
from models import load_pretrained
from models.export import export
from models.io.config import load_config
from models.io.published import from_published, to_published
from run_train import check_resume
from tests.conftest import assert_same, composed, metrics, read, tiny_config
from tests.scripts.test_recipes import NARROW
from training.loop import train
from training.run_dir import resumed_config, write_config
from utils.distributed import Distributed
from utils.errors import InputError, UserError, replacing
from utils.options import plain

CPU = Distributed(torch.device("cpu"))
QUICK = ["training.snapshot_sampling=false", "logger=none"]


@pytest.fixture(autouse=True)
def no_picture_of_losses(monkeypatch):
    """Plotting takes longer than the steps of these runs."""
    monkeypatch.setattr(training.metric_writer, "draw_losses", lambda *_: None)


def trained(run_dir: Path, *overrides: str) -> Path:
    """Train a run without samples."""
    train(tiny_config(*QUICK, *overrides), run_dir, CPU)
    return run_dir


def contents(folder: Path) -> dict[Path, bytes]:
    """Return all files except the empty lock file."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def kept(run_dir: Path) -> dict[str, int]:
    """Return the kept checkpoints and their steps."""
    return {path.name[11:-4]: read(path)["step"] for path in sorted((run_dir / "checkpoints").glob("*.pth"))}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_copied_run_resumes_from_its_last_kept_checkpoint(tmp_path, caplog, precision):
    options = ["training.snapshot_freq=2", f"precision={precision}", "model.dropout=0.1"]
    whole = trained(tmp_path / "whole", "training.n_iters=6", *options)
    original = trained(tmp_path / "original", "training.n_iters=4", *options)
    copy = tmp_path / "copy"
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("checkpoints-meta", "data.json"))
    before = contents(copy / "checkpoints")
    with caplog.at_level("INFO"):
        trained(copy, "training.n_iters=6", *options)
    assert f"resuming at step 4, from {copy}/checkpoints/checkpoint_2.pth" in caplog.text
    assert kept(copy) == {"1": 2, "2": 4, "3": 6}
    assert contents(copy / "checkpoints").items() > before.items()
    assert_same(*(read(run / "checkpoints/checkpoint_3.pth") for run in (whole, copy)))
    assert_same(*(read(run / "checkpoints-meta/checkpoint.pth") for run in (whole, copy)))
    assert [entry["loss"] for entry in metrics(copy)] == [entry["loss"] for entry in metrics(whole)]


@pytest.mark.parametrize("network", ["adm", "ddpmpp", "vdm"])
def test_what_the_published_code_reads_is_not_resumed(tmp_path, network):
    cfg = tiny_config(*QUICK, f"data.classes={network == 'adm'}")
    cfg.model = composed(f"model={network}", *NARROW[network]).model
    train(cfg, tmp_path / "run", CPU)
    export(tmp_path / "run", tmp_path / "out")
    before = contents(tmp_path / "out")
    cfg.training.n_iters = 4
    for resumed in (cfg, resumed_config(cfg, tmp_path / "out", [])):
        with pytest.raises(InputError, match=r"out holds what the published code wrote or reads, .*but not resumed$"):
            train(resumed, tmp_path / "out", CPU)
    assert contents(tmp_path / "out") == before


def test_a_run_with_a_name_for_its_process_is_still_ours():
    cfg = plain(tiny_config())
    cfg["sde"]["name"], cfg["data"]["dataset"] = "reflected_ve", "cifar10"
    assert from_published(cfg) == cfg
    published = to_published(cfg)
    assert published["data"]["dataset"] == "CIFAR10" and from_published(published)["data"] == cfg["data"]


def test_a_damaged_kept_checkpoint_is_skipped_and_kept(tmp_path, caplog):
    for name in ("whole", "damaged", "copied"):
        trained(tmp_path / name, "training.n_iters=4", "training.snapshot_freq=2")
    for name in ("damaged", "copied"):
        (tmp_path / name / "checkpoints/checkpoint_2.pth").write_bytes(b"half of it")
    shutil.rmtree(tmp_path / "copied/checkpoints-meta")
    for name in ("whole", "damaged", "copied"):
        trained(tmp_path / name, "training.n_iters=6", "training.snapshot_freq=2")
    assert "damaged/checkpoints/checkpoint_2.pth cannot be read as a checkpoint" in caplog.text
    assert f"resuming from the checkpoint before it, {tmp_path}/copied/checkpoints/checkpoint_1.pth" in caplog.text
    for name, steps in (("damaged", {"1": 2, "3": 6}), ("copied", {"1": 2, "3": 4, "4": 6})):
        assert_same(*(read(tmp_path / n / "checkpoints-meta/checkpoint.pth") for n in ("whole", name)))
        damaged = tmp_path / name / "checkpoints/checkpoint_2.pth"
        assert damaged.read_bytes() == b"half of it"
        damaged.unlink()
        assert kept(tmp_path / name) == steps


def test_checkpoints_are_not_overwritten_by_a_run_that_goes_back(tmp_path):
    """With the same options the same checkpoints are written again; with other options they get other numbers."""
    options = ["training.n_iters=6", "training.snapshot_freq=2", "optim.warmup=0", "training.snapshot_sampling=true"]
    options += ["sampling.method=multistep", "sampling.steps=2", "eval.batch_size=4"]
    run = trained(tmp_path, *options)
    before = contents(run / "checkpoints")
    for changed, added in (([], {}), (["optim.lr=0.1"], {"4": 4, "5": 6})):
        shutil.copy(run / "checkpoints/checkpoint_1.pth", run / "checkpoints-meta/checkpoint.pth")
        trained(run, *options, *changed)
        assert kept(run) == {"1": 2, "2": 4, "3": 6, **added}
        assert contents(run / "checkpoints").items() >= before.items()
    assert read(run / "checkpoints-meta/checkpoint.pth")["step"] == 6
    samples = {path.name: np.load(path / "sample_0.npy") for path in (run / "samples").iterdir()}
    assert samples.keys() == {"iter_2", "iter_4", "iter_6", "iter_4_before_checkpoint_4", "iter_6_before_checkpoint_5"}
    assert (samples["iter_6"] != samples["iter_6_before_checkpoint_5"]).any()
    newest = read(run / "checkpoints/checkpoint_5.pth")["ema"]["shadow_params"]
    assert torch.equal(next(load_pretrained(run)[0].parameters()), newest[0])


@pytest.mark.parametrize("name", ["checkpoints/checkpoint_1.pth", "checkpoints-meta/checkpoint.pth", "metrics.jsonl"])
def test_a_new_run_does_not_start_in_a_used_directory(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of somebody else")
    with pytest.raises(InputError, match=r"is there, but no .*/run/\.hydra/config\.yaml: choose another"):
        trained(tmp_path / "run")
    assert contents(tmp_path) == {path: b"of somebody else"}


@pytest.fixture
def pictures(monkeypatch):
    """A data set that a test changes: {"names", "training", "held_out", "pixels"}."""
    held = {"names": ("ant", "bee", "cat"), "training": 30, "held_out": 6, "pixels": "f00"}

    def load(train: bool, num_classes: int, **_) -> ImageDataset:
        n = held["training" if train else "held_out"]
        pixels = torch.full((n, 1, 8, 8), 100, dtype=torch.uint8)
        labels = torch.arange(n) % num_classes
        return ImageDataset(
            pixels, labels, num_classes, class_names=held["names"], fingerprint=held["pixels"] + str(train)
        )

    monkeypatch.setitem(datasets.registry.DATASETS, "pictures", load)
    return held


PICTURES = ["data.dataset=pictures", "data.num_classes=3", "training.n_iters=2"]


def test_a_run_records_its_data(tmp_path, pictures):
    run = trained(tmp_path, *PICTURES)
    assert json.loads((run / "data.json").read_text()) == {
        "num_classes": 3,
        "class_names": ["ant", "bee", "cat"],
        "training": {"images": 30, "fingerprint": "f00True"},
        "held_out": {"images": 6, "fingerprint": "f00False"},
    }


CHANGES = [
    ({"names": ("ant", "bee", "lynx")}, "class 2 was cat, now lynx\\. Bring"),
    ({"names": ("bee", "ant", "cat")}, "class 0 was ant, now bee, class 1 was bee, now ant"),
    ({"names": ("ant", "bee", "cat", "dog", "eel")}, "a class now: dog, eel\\. Bring"),
    ({"names": ("bee", "cat")}, "no longer a class: ant\\. Bring"),
    ({"training": 33}, "it had 30 images to train on, now 33"),
    ({"held_out": 5}, "it had 6 images held out, now 5"),
    ({"pixels": "abc"}, "the 30 images to train on, or their classes, are others; the 6 images held out, or"),
]


def test_changed_data_are_refused_unless_allowed(tmp_path, caplog, pictures):
    run = trained(tmp_path, *PICTURES)
    before, as_they_were = contents(run), dict(pictures)
    for change, message in CHANGES:
        pictures.update({**as_they_were, **change})
        with pytest.raises(InputError, match=f"was trained on: {message}.*training.allow_data_change=true"):
            trained(run, *PICTURES, "training.n_iters=3")
        assert contents(run) == before

    trained(run, *PICTURES, "training.n_iters=3", "training.allow_data_change=true")
    assert message in caplog.text and "continuing with this one" in caplog.text
    assert load_config(run).training.allow_data_change is False
    trained(run, *PICTURES, "training.n_iters=4")  # which is what it was trained on now
    assert read(run / "checkpoints-meta/checkpoint.pth")["step"] == 4


def test_a_changed_built_in_data_set_is_refused(tmp_path, monkeypatch):
    run = trained(tmp_path)
    digits = datasets.registry.DATASETS["digits"]

    def fewer(train: bool, **options) -> ImageDataset:
        images = digits(train, **options)
        return ImageDataset(images.data[:-1], images.labels[:-1], images.num_classes, images.levels)

    monkeypatch.setitem(datasets.registry.DATASETS, "digits", fewer)
    with pytest.raises(InputError, match=r"it had 1,438 images to train on, now 1,437; it had 359 .* now 358\."):
        trained(run, "training.n_iters=3")


def test_a_folder_that_has_grown_is_refused(tmp_path):
    def paint(first: int, last: int) -> None:
        for i in range(first, last):
            Image.fromarray(np.full((8, 8, 3), 5 * i, np.uint8)).save(tmp_path / f"pictures/{i:02d}.png")

    (tmp_path / "pictures").mkdir()
    paint(0, 20)
    folder = ["data=folder", f"data.root={tmp_path}/pictures", "data.image_size=8", f"dataroot={tmp_path}/data"]
    run = trained(tmp_path / "run", *folder)
    paint(20, 40)
    with pytest.raises(InputError, match="it had 18 images to train on, now 36; it had 2 images held out, now 4"):
        trained(run, *folder, "training.n_iters=3")
    trained(run, *folder, "training.n_iters=3", "training.allow_data_change=true")
    assert json.loads((run / "data.json").read_text())["training"]["images"] == 36


def test_a_run_without_a_record_resumes_and_writes_one(tmp_path, pictures, caplog):
    run = trained(tmp_path, *PICTURES)
    (run / "data.json").unlink()
    pictures["training"] = 40
    trained(run, *PICTURES, "training.n_iters=3")
    assert "data.json is missing: whether the data set is that of the run so far cannot be told" in caplog.text
    assert json.loads((run / "data.json").read_text())["training"]["images"] == 40


def test_a_damaged_record_is_one_line(tmp_path, pictures):
    run = trained(tmp_path, *PICTURES)
    for junk in ("", "[]", "{}", '{"class_names": [1], "num_classes": "x"}', "[" * 10_000):
        (run / "data.json").write_text(junk)
        with pytest.raises(InputError, match=r"data\.json cannot be read as what the run was trained on"):
            trained(run, *PICTURES, "training.n_iters=3")
    trained(run, *PICTURES, "training.n_iters=3", "training.allow_data_change=true")
    assert json.loads((run / "data.json").read_text())["num_classes"] == 3


def test_what_is_not_a_run_or_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").mkdir()
    (tmp_path / "file/.hydra").write_text("not a folder")
    for name in ("file", "nowhere", "", "x" * 300):
        with pytest.raises(InputError, match=f"^resume={name} (is not a run directory|cannot be read)"):
            check_resume([f"resume={name}"])
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/.hydra").mkdir(mode=0)
    user = os.geteuid()
    try:
        if user == 0:  # whom permissions do not stop
            os.seteuid(65534)
        with pytest.raises(InputError, match=r"^resume=.*/closed cannot be read: Permission denied: .*config\.yaml$"):
            check_resume([f"resume={tmp_path}/closed"])
    finally:
        os.seteuid(user)


@contextmanager
def full_disk(size: int):
    """Limit the size of files to ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_no_temporary_file(tmp_path):
    acts = [
        lambda: write_config(tmp_path, tiny_config()),
        lambda: write_arrays(tmp_path / "arrays.npz", {"x": np.random.default_rng(0).random(1000)}),
        lambda: trained(tmp_path / "run"),
    ]
    for act in acts:
        with pytest.raises(UserError, match="cannot be written: File too large"), full_disk(100):
            act()
    assert contents(tmp_path) == {}


def test_a_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with suppress(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {path: b"old"}
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {path: b"new"}


def test_a_moment_that_is_not_finite_is_named(tmp_path):
    run = trained(tmp_path / "run")
    path = run / "checkpoints-meta/checkpoint.pth"
    state = read(path)
    state["optimizer"]["state"][0]["exp_avg"].view(-1)[0] = torch.nan
    torch.save(state, path)
    with pytest.raises(InputError, match=r"point\.pth: exp_avg of embed1\.weight holds values that are not finite"):
        trained(run, "training.n_iters=3")

"""A run that starts from the weights of another one (init_from)."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import training.metric_writer
from datasets.registry import complete_data
from models import load_pretrained
from models.export import export
from run_train import check_resume
from tests.conftest import TINY, assert_same, composed, read, tiny_config
from tests.models.test_models import GOLDEN
from tests.scripts.test_recipes import NARROW
from training.loop import create_state, train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = Distributed(torch.device("cpu"))
QUICK = ["training.snapshot_sampling=false", "logger=none"]
STILL = "optim.lr=0"  # the weights stay those that the run started from
FAKE = ["data=fake", "data.image_size=8", "data.classes=true"]


@pytest.fixture(autouse=True)
def no_picture_of_losses(monkeypatch):
    monkeypatch.setattr(training.metric_writer, "draw_losses", lambda *_: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Train a run on digits whose averages differ from its weights, with two checkpoints."""
    folder = tmp_path_factory.mktemp("finetune") / "source"
    train(tiny_config(*QUICK, "training.n_iters=4", "training.snapshot_freq=2", "optim.warmup=0"), folder, CPU)
    return folder


def weights(run_dir, ckpt=-1, **kind):
    return load_pretrained(run_dir, ckpt, **kind)[0].network.state_dict()


def equal(a, b):
    return {name for name in a if name in b and torch.equal(a[name], b[name])}


def start(run_dir, source, *overrides):
    train(tiny_config(*QUICK, f"init_from={source}", *overrides), run_dir, CPU)
    return run_dir


def test_network_and_average_start_from_the_averages_and_all_else_anew(source, tmp_path):
    run = start(tmp_path / "run", source, "training.n_iters=1", STILL)
    averages = weights(source)
    assert len(equal(averages, weights(source, weights="model"))) < len(averages) / 2
    for kind in ("model", "ema"):
        assert len(equal(weights(run, weights=kind), averages)) == len(averages)
    state = read(run / "checkpoints-meta/checkpoint.pth")
    assert state["step"] == state["ema"]["num_updates"] == 1
    first = read(run / "checkpoints-meta/checkpoint_previous.pth")
    assert first["step"] == first["ema"]["num_updates"] == 0 and not first["optimizer"]["state"]


def test_what_it_started_from_is_recorded(source, tmp_path):
    path = source / "checkpoints/checkpoint_2.pth"
    run = start(tmp_path / "run", source, "training.n_iters=1")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads((run / "init_from.json").read_text()) == {"path": str(path), "sha256": sha256, "fresh": []}
    assert f"init_from: {source}" in (run / ".hydra/config.yaml").read_text()


def test_a_checkpoint_an_export_and_a_published_directory_are_taken(source, tmp_path):
    first = start(tmp_path / "first", source / "checkpoints/checkpoint_1.pth", "training.n_iters=1", STILL)
    assert len(equal(weights(first), weights(source, 1))) == len(weights(source))
    assert len(equal(weights(source, 1), weights(source, 2))) < len(weights(source)) / 2
    export(source, tmp_path / "model.safetensors", "safetensors")
    export(source, tmp_path / "published")
    for name in ("model.safetensors", "published"):
        run = start(tmp_path / f"from_{name}", tmp_path / name, "training.n_iters=1", STILL)
        assert len(equal(weights(run), weights(source))) == len(weights(source))


def test_the_published_run_is_taken(tmp_path, caplog):
    published = load_pretrained(GOLDEN / "reference_run")
    cfg = tiny_config(*QUICK, "data=fake", "data.num_channels=3", f"init_from={GOLDEN}/reference_run", STILL)
    cfg.data.image_size = published[1].data.image_size
    cfg.model, cfg.training.n_iters = published[1].model, 1
    cfg.sde.sigma_min, cfg.sde.sigma_max = published[1].sde.sigma_min, published[1].sde.sigma_max
    train(cfg, tmp_path / "run", CPU)
    expected = published[0].network.state_dict()
    assert len(equal(weights(tmp_path / "run"), expected)) == len(expected)


def test_what_does_not_fit_the_data_is_named_and_initialised_as_from_scratch(source, tmp_path, caplog):
    options = [*FAKE, "data.num_channels=3", "data.num_classes=4", "training.n_iters=1", STILL]
    scratch = create_state(tiny_config(*options), CPU.device).model.network.state_dict()
    with caplog.at_level("INFO"):
        run = start(tmp_path / "run", source, *options)
    found, averages = weights(run), weights(source)
    fresh = {"embed_label.weight", "conv_in.weight", "conv_out.weight", "conv_out.bias"}
    assert equal(found, averages) == found.keys() - fresh
    assert fresh <= equal(found, scratch)
    assert set(json.loads((run / "init_from.json").read_text())["fresh"]) == fresh
    assert f"{len(averages) - 4} of {len(averages)} tensors" in caplog.text
    for name in fresh:
        assert f"init_from: {name} is freshly initialised: [" in caplog.text
    assert "embed_label.weight is freshly initialised: [32,10] there, [32,4] here" in caplog.text


def test_classes_and_conditions_come_and_go(source, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run = start(tmp_path / "without", source, "data.classes=false", "training.n_iters=1", STILL)
    assert "init_from: embed_label.weight is not used" in caplog.text
    assert len(equal(weights(run), weights(source))) == len(weights(run)) == len(weights(source)) - 1
    with caplog.at_level("INFO"):
        again = start(tmp_path / "with", run, "training.n_iters=1", STILL)
    assert "init_from: embed_label.weight is freshly initialised: not there" in caplog.text
    assert weights(again).keys() - equal(weights(again), weights(run)) == {"embed_label.weight"}


def test_columns_of_a_table_may_be_others(tmp_path):
    table = ["data=array", "model=mlp", "model.width=16", "model.num_blocks=1", "data.low=0", "data.high=1"]
    for name, columns in (("three", 3), ("four", 4)):
        path = tmp_path / f"{name}.npy"
        with path.open("wb") as file:
            np.save(file, np.random.default_rng(0).random((40, columns)))
        cfg = composed(*table, *QUICK, f"data.root={path}", "device=cpu", "training.n_iters=1", "training.batch_size=4")
        cfg.data.shape = [columns]
        cfg.optim.lr = 0
        if name == "four":
            cfg.init_from = str(tmp_path / "three")
        del cfg.resume
        complete_data(cfg.data)
        train(cfg, tmp_path / name, CPU)
    fresh = json.loads((tmp_path / "four/init_from.json").read_text())["fresh"]
    assert fresh == ["linear_in.weight", "linear_out.weight", "linear_out.bias"]


def test_a_resumed_run_needs_the_source_no_more_and_equals_an_uninterrupted_one(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    options = ["optim.warmup=0", "model.dropout=0.1"]
    start(tmp_path / "whole", copy, "training.n_iters=4", *options)
    start(tmp_path / "parts", copy, "training.n_iters=2", *options)
    begun = start(tmp_path / "begun", copy, "training.n_iters=2", *options)
    for folder in ("checkpoints", "checkpoints-meta"):  # as if it had been killed before its first regular checkpoint
        shutil.rmtree(begun / folder)
    shutil.copytree(tmp_path / "parts/checkpoints-meta", begun / "checkpoints-meta")
    (begun / "checkpoints-meta/checkpoint.pth").unlink()
    shutil.copy(tmp_path / "parts/checkpoints-meta/checkpoint_previous.pth", begun / "checkpoints-meta/checkpoint.pth")
    assert read(begun / "checkpoints-meta/checkpoint.pth")["step"] == 0
    shutil.rmtree(copy)
    for name in ("parts", "begun"):
        start(tmp_path / name, copy, "training.n_iters=4", *options)
        assert_same(*(read(tmp_path / n / "checkpoints-meta/checkpoint.pth") for n in ("whole", name)))


def test_another_source_is_another_run(source, tmp_path):
    run = start(tmp_path / "run", source, "training.n_iters=1")
    with pytest.raises(InputError, match=rf"^init_from=None, but the run in {run} has {source}: start another"):
        train(tiny_config(*QUICK), run, CPU)
    with pytest.raises(InputError, match=rf"^init_from={source}, but the run in {source} has None: start another"):
        start(source, source)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.num_blocks=2"], r"model\.num_blocks=1, not 2: its weights fit with these options only"),
        (
            ["model.model_channels=16", "model.channel_mult=[1,2]"],
            r"model\.model_channels=8 model\.channel_mult=\[1\], not 16, \[1,2\]",
        ),
        (["model.parametrization=kernel"], r"model\.parametrization=output, not kernel"),
        (["model.scale_by_sigma=false"], r"model\.scale_by_sigma=True, not False"),
        (["model=mlp", "~model.model_channels"], r"model\.name=adm model\.parametrization=output, not mlp, kernel_fa"),
    ],
)
def test_another_network_or_parametrization_is_refused_by_its_key(source, tmp_path, overrides, message):
    cfg = tiny_config(*QUICK, f"init_from={source}")
    if overrides[0] == "model=mlp":
        cfg.model = composed("model=mlp").model
    else:
        cfg = tiny_config(*QUICK, f"init_from={source}", *overrides)
    with pytest.raises(InputError, match=rf"^init_from={source}: {source}/checkpoints/checkpoint_2\.pth .*{message}"):
        train(cfg, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_options_of_training_alone_may_be_others(source, tmp_path):
    options = ["model.dropout=0.3", "model.ema_rate=0.9", "model.sigma_data=0.3", "training.n_iters=1", STILL]
    run = start(tmp_path / "run", source, *options)
    assert len(equal(weights(run), weights(source))) == len(weights(source))


def test_other_noise_levels_are_a_warning_unless_the_network_has_them_built_in(source, tmp_path, caplog):
    start(tmp_path / "narrower", source, "sde.sigma_min=0.02", "training.n_iters=1")
    assert "was trained for noise levels" not in caplog.text
    start(tmp_path / "wider", source, "sde.sigma_min=0.001", "training.n_iters=1")
    assert "was trained for noise levels 0.01 to 5; sde.sigma_min=0.001 to sde.sigma_max=5 has others" in caplog.text
    start(tmp_path / "free", source, "sde=ve", "training.n_iters=1")
    assert "was trained with sde=reflected_ve, not sde=ve" in caplog.text

    def vdm(*overrides):
        cfg = tiny_config(*QUICK, "data.classes=false", "training.n_iters=1", *overrides)
        cfg.model = composed("model=vdm", *NARROW["vdm"]).model
        return cfg

    train(vdm(), tmp_path / "vdm", CPU)
    with pytest.raises(InputError, match=r"trained with sde\.sigma_min=0\.01, not 0\.02"):
        train(vdm(f"init_from={tmp_path}/vdm", "sde.sigma_min=0.02"), tmp_path / "other", CPU)


def test_images_of_another_size_are_taken_if_the_layers_are_the_same(source, tmp_path):
    run = start(tmp_path / "run", source, *FAKE, "data.image_size=16", "data.num_channels=1", "data.num_classes=10",
                "training.n_iters=1", STILL)  # fmt: skip
    assert len(equal(weights(run), weights(source))) == len(weights(source))

    attention = ["model.model_channels=64", "model.attn_resolutions=[8]", "training.n_iters=1", *FAKE]
    train(tiny_config(*QUICK, *attention, "data.num_classes=2"), tmp_path / "attention", CPU)
    message = r"of data of shape \[3,8,8\], .* other layers than for \[3,16,16\]: .*attention.* is in one of them only"
    with pytest.raises(InputError, match=message):
        start(tmp_path / "other", tmp_path / "attention", *attention, "data.num_classes=3", "data.image_size=16")


def test_classes_of_other_names_are_a_warning(tmp_path, caplog):
    for classes in ("ab", "cb"):
        for name in classes:
            (tmp_path / classes / name).mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (8, 8), (20 * i, 100, 50)).save(tmp_path / classes / name / f"{i}.png")
    options = ["data=folder", "data.image_size=8", "data.classes=true", f"dataroot={tmp_path}/data"]
    train(tiny_config(*QUICK, *options, f"data.root={tmp_path}/ab", "data.num_classes=2"), tmp_path / "first", CPU)
    start(tmp_path / "second", tmp_path / "first", *options, f"data.root={tmp_path}/cb", "data.num_classes=2")
    assert "init_from: the classes are others, 'b' starts as 'a', for example" in caplog.text


def test_damaged_and_missing_sources_are_one_line_naming_the_key(source, tmp_path):
    with pytest.raises(InputError, match=r"^init_from=nowhere: nowhere/checkpoints has no checkpoint_\*\.pth"):
        start(tmp_path / "run", "nowhere")
    broken = shutil.copytree(source, tmp_path / "broken")
    path = broken / "checkpoints/checkpoint_2.pth"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"^init_from={broken}: {path} cannot be read as a checkpoint"):
        start(tmp_path / "run", broken)
    contents = read(source / "checkpoints/checkpoint_2.pth")
    del contents["model"]["conv_in.weight"]
    torch.save(contents, path)
    with pytest.raises(InputError, match=r"checkpoint_2\.pth has no conv_in\.weight, which the network"):
        start(tmp_path / "run", broken)
    assert not (tmp_path / "run").exists()


def test_it_does_not_go_with_resume(source):
    for arguments in ([f"resume={source}", "init_from=x"], ["init_from=x", f"resume={source}"]):
        with pytest.raises(InputError, match=r"^init_from=x does not go with resume=.*, which goes on with its own"):
            check_resume(arguments)


@pytest.mark.slow(15)
def test_the_command_line_takes_it_and_resumes_without_it(source, tmp_path, script):
    shutil.copytree(source, tmp_path / "source")
    begun = script("run_train.py", *TINY, *QUICK, "init_from=source", "hydra.run.dir=run", "training.n_iters=2")
    assert begun.returncode == 0 and "init_from: averaged weights of " in begun.stderr, begun.stderr
    shutil.rmtree(tmp_path / "source")
    resumed = script("run_train.py", "resume=run", "training.n_iters=3")
    assert resumed.returncode == 0 and "resuming at step 2" in resumed.stderr, resumed.stderr
    again = script("run_train.py", *TINY, *QUICK, "init_from=source", "hydra.run.dir=run", "training.n_iters=4")
    assert again.returncode == 0 and "resuming at step 3" in again.stderr, again.stderr
    assert read(tmp_path / "run/checkpoints-meta/checkpoint.pth")["step"] == 4

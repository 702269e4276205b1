"""Paths with special characters on the command line, and errors about arguments that cannot be parsed."""

import os
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from cli.options import is_path_key, option_keys, path_keys
from cli.overrides import parse_path, quote_paths, read_override
from models import create_model
from models.create import networks_with
from tests.conftest import TINY, composed, metrics, read, tiny_config
from training.loop import train
from training.options import check_train
from utils.distributed import Distributed
from utils.errors import InputError
from utils.options import flat

CPU = Distributed(torch.device("cpu"))
# Every character that Hydra, YAML or a shell reads otherwise, and some that not all can write.
AWKWARD = 'a=b, c:(d) [e] {f} it\'s "q" #1 $x `y` ~ & | ; * ? ! % @ ünï ☃ \\'
NAMES = ["1", "1e3", "null", "true", "~", "~x", "a b", "a=b", "a,b", "(", "[x]", "{", "'", '"', '"q"', "\\", "a\\", "#"]


def hydra_reads(*arguments):
    """Return {key: value} as Hydra reads the arguments."""
    return {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(list(arguments))}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to an empty folder, and set a home directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@given(st.text(min_size=1).filter(lambda name: "\0" not in name and "${" not in name))
@example(AWKWARD)
def test_an_absolute_path_reaches_hydra_as_it_is(name):
    for key in ("data.root", "resume", "+hydra.run.dir"):
        read = hydra_reads(*quote_paths([f"{key}=/{name}"]))
        assert read == {key.lstrip("+"): f"/{name}"}


def test_the_name_of_an_existing_file_is_unchanged(here):
    for name in NAMES:
        (here / name).mkdir()
        assert hydra_reads(*quote_paths([f"load_dir={name}"])) == {"load_dir": name}


def test_the_home_quotes_and_null_are_replaced(here):
    home = str(here.parent / "home")
    for typed, meant in {
        "~": home, "~/a b": f"{home}/a b", '"~/x, y"': f"{home}/x, y", "'a,b'": "a,b", '"q" and "r"': '"q" and "r"',
        "null": None, "": "", "1e3": "1e3", "'": "'", "~nobody_of_this_name/x": "~nobody_of_this_name/x",
    }.items():  # fmt: skip
        assert parse_path(typed) == meant, typed
        assert hydra_reads(*quote_paths([f"data.root={typed}"])) == {"data.root": meant}, typed


def test_other_arguments_stay_as_they_are():
    arguments = [
        "-m",
        "--help",
        "label=[0,1]",
        "optim.lr=1e-3,1e-4",
        "~model.nf",
        "x",
        "root=${oc.env:HOME}",
        "=",
        "a=",
    ]
    assert quote_paths(arguments) == arguments


def test_a_multirun_separates_paths_by_commas(here):
    def sweep(typed):
        (read,) = OverridesParser.create().parse_overrides(quote_paths(["-m", f"load_dir={typed}"])[1:])
        return list(read.sweep_string_iterator()) if read.is_sweep_override() else read.value()

    assert sweep("a=1,b c") == ['"a=1"', '"b c"'] and sweep("a=1") == "a=1"
    assert sweep("'a,b','c'") == ["'a,b'", "'c'"]
    assert hydra_reads(*quote_paths(["hydra.sweep.dir=a,(b)", "-m"])[:1]) == {"hydra.sweep.dir": "a,(b)"}
    (here / "a,b").mkdir()
    assert sweep("a,b") == "a,b"


def test_the_paths_are_options_of_the_scripts():
    known = {key for script in ("train", "vis", "eval") for key in option_keys(script)}
    assert {*known, "hydra.run.dir", "hydra.sweep.dir"} >= path_keys() and len(path_keys()) == 16
    for name in ("train", "vis", "eval"):
        for key, value in flat(composed(*["load_dir=x"] * (name != "train"), name=name)).items():
            like_a_path = key.endswith(("root", "_dir", "_path")) or (isinstance(value, str) and "/" in value)
            assert is_path_key(key, "a, b") or not like_a_path, key


@pytest.mark.slow(12)
def test_an_awkward_run_is_resumed_drawn_from_and_measured(script, tmp_path):
    name = AWKWARD + "\n"
    trained = script("run_train.py", *TINY, "training.snapshot_sampling=false", f"hydra.run.dir={AWKWARD}")
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / AWKWARD
    assert read(run / "checkpoints/checkpoint_1.pth")["step"] == 2 and name not in os.listdir(tmp_path)

    # the line that it prints, as a shell takes it apart
    line = next(line for line in trained.stderr.splitlines() if line.startswith("resume ")).removeprefix("resume")
    parts = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True).stdout
    _, path, *arguments = parts.rstrip("\0").split("\0")
    assert os.path.samefile(path, os.path.join(os.path.dirname(__file__), "../../run_train.py"))
    assert shlex.split(line)[2:] == arguments == [f"resume={run}"]
    resumed = script("run_train.py", *arguments, "training.n_iters=3")
    assert "resuming at step 2" in resumed.stderr and len(metrics(run)) == 3, resumed.stderr

    first, quick = f"load_dir={AWKWARD}/checkpoints/checkpoint_1.pth", ["sampling.method=multistep", "device=cpu"]
    drawn = script("run_vis.py", first, *quick, "sampling.steps=2", "eval.batch_size=2", "hydra.run.dir=drawn (1)")
    assert drawn.returncode == 0, drawn.stderr
    assert np.load(tmp_path / "drawn (1)/images/samples_0.npz")["samples"].shape == (2, 8, 8, 1)
    assert "ckpt: 1\n" in (tmp_path / "drawn (1)/images/vis.yaml").read_text()
    few = [
        "metrics=[elbo]",
        "metrics.elbo.num_times=1",
        "metrics.elbo.importance_sampling=false",
        "eval.images=2",
        "device=cpu",
    ]
    measured = script("run_eval.py", first, *few, "hydra.run.dir=measured,")
    assert measured.returncode == 0, measured.stderr
    assert "checkpoint_1.pth" in (tmp_path / "measured,/results.json").read_text()


@pytest.mark.slow(8)
def test_a_run_of_moved_images_resumes_and_other_keys_are_named(script, tmp_path):
    (tmp_path / "pics").mkdir()
    for i in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / f"pics/{i:02d}.png")
    folder = ["data=folder", f"data.root={tmp_path}/pics", "data.image_size=8", f"dataroot={tmp_path}/data"]
    train(tiny_config(*folder, "training.snapshot_sampling=false"), tmp_path / "1e3", CPU)
    shutil.move(tmp_path / "pics", tmp_path / "my [new] pics")
    for typed in ("data.root=my [new] pics", "+data.root=my [new] pics"):
        resumed = script("run_train.py", "resume=1e3", typed, "training.n_iters=3")
        assert resumed.returncode == 0, resumed.stderr
    assert len(metrics(tmp_path / "1e3")) == 3
    for typed, message in {
        "data.root=pics": "data.root=pics is not a folder",
        "model.channel_mult=[2]": "model.channel_mult=[2], but the run in",
        "model.channel_mul=[2]": "model.channel_mul: no such option; did you mean model.channel_mult?",
    }.items():
        refused = script("run_train.py", "resume=1e3", typed, "training.n_iters=4")
        assert refused.returncode == 1 and refused.stderr.startswith(message), refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_read_override():
    assert read_override("++data.root=a=b") == ("++", "data.root", "a=b")
    assert read_override("hydra/launcher=slurm") == ("", "hydra/launcher", "slurm")
    assert read_override("~model.nf")[1] == read_override("pics")[1] == read_override("--cfg=job")[1] == ""


def test_a_name_that_is_not_utf8_is_one_line():
    with pytest.raises(InputError, match=r"data\.root='pics\\udcff': the name is not UTF-8"):
        quote_paths(["data.root=pics\udcff"])


def test_the_advice_on_an_experiment_with_another_network_can_be_followed():
    advice = ["~model.model_channels", "~model.channel_mult", "~model.num_blocks", "data.classes=False"]
    cfg = composed("experiment=digits", "model=ddpmpp", *advice)
    check_train(cfg, 1)
    assert create_model(cfg.model, cfg.data, cfg.sde).num_classes == 0
    assert networks_with("num_classes") == ["adm", "mlp"]

"""Bad options and files: each gives a one-line error that names the fault, and leaves no files behind."""

import os
import pickle
import re
import shutil
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from cli.options import option_keys
from models.export import export
from models.io.config import parse_config
from models.io.pretrained import build_shapes
from tests.conftest import TINY, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

QUICK = ["device=cpu", "sampling.method=multistep", "sampling.steps=2", "eval.batch_size=2", "hydra.run.dir=out"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make a folder with a run on digits, ``run``, an exported file, and some images."""
    folder = tmp_path_factory.mktemp("bad") / "place"
    folder.mkdir()
    train(tiny_config("training.snapshot_sampling=false"), folder / "run", Distributed(torch.device("cpu")))
    export(folder / "run", folder / "model.safetensors", "safetensors", -1)
    (folder / "images").mkdir()
    (folder / "empty").mkdir()
    for i in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(folder / f"images/{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def run(place, scripts):
    """Return a function that runs a script in ``place``."""
    return partial(scripts, place, timeout=60)


def said(result):
    """Return the whole output of a script."""
    return result.stdout + result.stderr


def contents(folder):
    """Return every file and folder below ``folder``, with its bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(result, message):
    """Assert that the script exited non-zero with one line that contains ``message``."""
    lines = [line for line in said(result).splitlines() if line.strip()]
    assert result.returncode == 1, (result.returncode, said(result))
    assert len(lines) == 1, said(result)
    assert message in lines[0]
    assert lines[0].isprintable() and "hunter2" not in lines[0]


TRAIN_CASES = [
    # what is typed, and what the line says
    ("trainig.n_iters=3", "trainig.n_iters: no such option; did you mean training.n_iters?"),
    ("training.batchsize=3", "training.batchsize: no such option; did you mean training.batch_size?"),
    ("+lr=3", "lr: no such option"),
    ("+training.lr=3", "training.lr: no such option"),
    ("+model.width=3", "model.width: no such option"),
    ("+data.root=images", "data.root is an option of data=folder and array, and this is data=digits"),
    ("model=unet", "model=unet: known are adm, ddpmpp, mlp, vdm"),
    ("model=ddpmp", "did you mean ddpmpp?"),
    ("data=cifar", "data=cifar: known are"),
    ("experiment=debug/tinny", "did you mean debug/tiny?"),
    (
        "experiment=debug",
        "experiment=debug: known are array, cifar10_images, cifar10_likelihood, debug/tiny, digits, imagenet",
    ),
    ("experiment=digit", "did you mean digits?"),
    ("model.name=resnet", "model.name=resnet: known are ddpmpp, vdm, adm"),
    ("data.dataset=mnist", "data.dataset=mnist: known are"),
    ("device=gpu", "device=gpu: known are auto, cpu, cuda"),
    ("device=cuda", "device=cuda, but torch sees no GPU here"),
    ("precision=fp8", "precision=fp8: known are fp32, bf16, fp16"),
    ("compile=perhaps", "compile=perhaps: need true or false"),
    ("training.activation_checkpointing=2", "training.activation_checkpointing=2: need true or false"),
    ("logger=wandbb", "logger=wandbb: known are none, tensorboard, wandb; did you mean wandb?"),
    ("logger.name=csv", "logger.name=csv: known are tensorboard, wandb, none"),
    ("logger.mode=offline", "logger.mode: no such option"),
    ("root=", "root='': need a name or path"),
    ("optim.optimizer=adam", "optim.optimizer=adam: known are Adam, AdamW; did you mean Adam?"),
    ("optim.lr=fast", "optim.lr=fast: need a number, at least 0"),
    ("optim.lr=-1e-3", "optim.lr=-0.001: need a number, at least 0"),
    ("optim.lr=nan", "optim.lr=nan: need a number"),
    ("optim.lr=null", "optim.lr=None: need a number"),
    ("optim.lr=[1,2]", "optim.lr=[1, 2]: need a number"),
    ("optim.lr={a:1}", "optim.lr={'a': 1}: need a number"),
    ("optim.beta1=1", "optim.beta1=1: need a number, at least 0, less than 1"),
    ("optim.grad_clip=0", "optim.grad_clip=0 leaves no gradient"),
    ("optim=3", "optim=3: need a section"),
    ("training.batch_size=0", "training.batch_size=0: need an integer, at least 1"),
    ("training.batch_size=8.5", "training.batch_size=8.5: need an integer"),
    ("training.batch_size=true", "training.batch_size=True: need an integer"),
    ("training.grad_accum_steps=9", "training.batch_size=8: less than an image for each of 1 processes x"),
    ("ngpus=9", "training.batch_size=8: less than an image for each of 9 processes"),
    ("ngpus=0", "ngpus=0: need an integer, at least 1"),
    (f"training.n_iters=1{'0' * 400}", "need an integer, at least 0, at most 1e+12"),
    ("training.step_timeout=1e300", "training.step_timeout=1e+300: need a number, at least 1"),
    ("ngpus=4000", "training.batch_size=8: less than an image for each of 4000"),
    ("training.n_iters=-1", "training.n_iters=-1: need an integer, at least 0"),
    ("training.log_freq=0", "training.log_freq=0"),
    ("training.eval_freq=0", "training.eval_freq=0"),
    ("training.snapshot_freq=0", "training.snapshot_freq=0"),
    ("training.n_images=0", "training.n_images=0: need an integer, at least 1"),
    (
        "optim.schedule=cosin",
        "optim.schedule=cosin: known are constant, cosine, linear, inverse_sqrt; did you mean",
    ),
    ("optim.decay_after=0", "optim.decay_after=0: need a number, more than 0"),
    ("training.keep_last=0", "training.keep_last=0: need an integer, at least 1, at most 1e+09, or null"),
    ("training.keep_every=2", "training.keep_every=2 is about checkpoints that training.keep_last=N deletes: give"),
    ("training.drop_label=1.5", "training.drop_label=1.5: need a number, at least 0, at most 1"),
    ("training.snapshot_sampling=3", "training.snapshot_sampling=3: need true or false"),
    ("model.dropout=-0.1", "model.dropout=-0.1: need a number, at least 0, at most 1"),
    ("model.ema_rate=2", "model.ema_rate=2: need a number, at least 0, at most 1"),
    ("model.channel_mult=3", "model.channel_mult=3: need a list"),
    ("model.channel_mult=[]", "model.channel_mult=[]: need a list of 1 to 16 values"),
    ("model.channel_mult=[1,x]", "model.channel_mult=x: need an integer"),
    ("model.channel_mult=[1,1,1,1,1]", "data.image_size=8"),
    ("model.model_channels=7", "model.model_channels=7: need an even number"),
    ("model.model_channels=1e9", "model.model_channels=1000000000.0: need an integer"),
    ("data.image_size=28", "data.dataset=digits has samples of shape (1, 8, 8)"),
    ("data.image_size=1000000", "data.image_size=1000000: need an integer, at least 1, at most 16384"),
    ("data.num_classes=5", "data.num_classes=5, but data.dataset=digits has 10"),
    ("sde.sigma_min=0", "sde.sigma_min=0: need a number, more than 0"),
    ("sde.sigma_min=9", "sde.sigma_min=9 and sde.sigma_max=5: need sigma_min < sigma_max"),
    ("sde.num_scales=0", "sde.num_scales=0"),
    ("sde.name=vp", "sde.name=vp: known are reflected_ve, ve"),
    ("sampling.boundary=dynamic", "sampling.boundary=dynamic does not fit a process that stays in [0, 1] by itself"),
    ("sampling.percentile=2", "sampling.percentile=2: need a number, more than 0, at most 1"),
    ("training.noise_levels=lognormal", "did you mean log_normal?"),
    ("training.noise_levels=loss_adptive", "did you mean loss_adaptive?"),
    ("training.weighting=log_varience", "did you mean log_variance?"),
    ("training.stratified=2", "training.stratified=2: need true or false"),
    ("training.log_sigma_std=0", "training.log_sigma_std=0: need a number, more than 0"),
    ("sampling.method=euler", "sampling.method=euler: known are pc, ode, heun, multistep, unipc, auto"),
    ("sampling.predictor=em", "sampling.predictor=em: known are euler_maruyama, ancestral"),
    ("sampling.corrector=langvin", "did you mean langevin?"),
    ("sampling.boundary=wrap", "sampling.boundary=wrap: known are reflect, clip"),
    ("sampling.denoiser=median", "sampling.denoiser=median: known are none, mean, network"),
    ("sampling.steps=0", "sampling.steps=0"),
    ("sampling.nfe=8", "sampling.nfe=8 is for sampling.method=auto"),
    ("sampling.nfe=1", "sampling.nfe=1: need an integer, at least 2"),
    ("sampling.eta=-1", "sampling.eta=-1: need a number, at least 0"),
    ("sampling.sigmas=[0.5,-1]", "need a list of falling noise levels, such as [1, 0.3, 0.1], or null"),
    ("sampling.sigmas=[]", "need a list of falling noise levels, such as [1, 0.3, 0.1], or null"),
    ("sampling.snr=-1", "sampling.snr=-1"),
    ("+sampling.step=3", "sampling.step: no such option; did you mean sampling.steps?"),
    ("seed=-1", "seed=-1: need an integer, at least 0"),
    ("dataroot=''", "dataroot='': need a name or path"),
    ("optim.lr=${nowhere}", "optim.lr=${nowhere}: Interpolation key 'nowhere' not found"),
    ("optim.lr=[", "optim.lr=[: no viable alternative"),
    ("logger.project=a=(b", """it is taken as it stands: 'logger.project="a=(b"'"""),
    ("n_iters", "n_iters: "),
    ("of mine", "of mine: not KEY=VALUE; if it belongs to what is before it"),
    ("resume=nowhere", "resume=nowhere is not a run directory"),
    ("init_from=", "init_from='': need a name or path"),
    ("init_from=nowhere", "nowhere/checkpoints has no checkpoint_*.pth"),
    ("init_from=images/00.png", "images/00.png is a file: give a run, RUN/checkpoints/checkpoint_N.pth, or a"),
]


@pytest.mark.parametrize(("typed", "message"), TRAIN_CASES, ids=[typed for typed, _ in TRAIN_CASES])
def test_train(run, place, typed, message):
    before = contents(place)
    refused(run("run_train.py", *TINY, typed), message)
    assert contents(place) == before


OTHER_CASES = [
    ("run_train.py", ["model=vdm", "data=digits"], "data.classes=True, but model=vdm has no classes"),
    ("run_train.py", ["data=folder", "device=cpu", "model.nf=8"], "data.root is missing: say data.root=PATH"),
    ("run_train.py", ["data=folder", "data.root=empty", "device=cpu", "model.nf=8"], "empty has no images to train on"),
    ("run_train.py", ["data=folder", "data.root=gone", "device=cpu", "model.nf=8"], "data.root=gone is not a folder"),
    ("run_train.py", ["resume=run", "model.dropout=0.5"], "model.dropout=0.5, but the run in"),
    ("run_train.py", ["resume=run", "data.root=images"], "data.root is an option of data=folder and array, and this"),
    ("run_train.py", ["resume=run", "model.nf=8"], "model.nf: no such option"),
    ("run_train.py", ["resume=run", "logger.project=x"], "logger.project: no such option"),
    (
        "run_train.py",
        ["resume=run", "training.allow_data_change=1"],
        "training.allow_data_change=1: need true or false",
    ),
    ("run_train.py", ["resume=model.safetensors"], "resume=model.safetensors is not a run directory"),
    ("run_train.py", ["data=folder", "data.root=my", "pics"], "quote the whole: 'data.root=my pics'"),
    (
        "run_train.py",
        ["experiment=digits", "model=ddpmpp"],
        "experiment=digits sets model.model_channels, model.channel_mult, model.num_blocks of model=adm, not of "
        "model=ddpmpp: take them out, '~model.model_channels' '~model.channel_mult' '~model.num_blocks' "
        "data.classes=False, or leave out model=ddpmpp",
    ),
    ("run_train.py", ["experiment=debug/tiny", "model.dropout=2"], "model.dropout=2: need a number"),
    ("run_train.py", ["resume=run", "training.n_iters=x"], "training.n_iters=x: need an integer"),
    ("run_train.py", ["resume=run", "experiment=digits"], "experiment cannot change in a resumed run"),
    ("run_train.py", ["resume=run", "init_from=run"], "init_from=run does not go with resume=run, which goes on with"),
    (
        "run_train.py",
        [*TINY, "init_from=run", "model.num_blocks=2", "model.parametrization=edm"],
        "checkpoint_1.pth was trained with model.parametrization=output model.num_blocks=1, not edm, 2: its",
    ),
    (
        "run_train.py",
        ["data=digits", "model=mlp", "device=cpu", "init_from=model.safetensors"],
        "model.safetensors was trained with model.name=adm model.parametrization=output, not mlp, kernel_faces",
    ),
    ("run_train.py", ["resume=run", "-m"], "-m does not go with resume=run"),
    ("run_vis.py", ["load_dir=run", "ngpus=4000"], "ngpus=4000, but there are"),
    ("run_vis.py", ["load_dir=run", "eval.batch_size=10000000000"], "need an integer, at least 1, at most 1e+06"),
    ("run_vis.py", [], "load_dir is missing: say load_dir=..."),
    ("run_vis.py", ["load_dir=nowhere"], "nowhere is not a run directory"),
    ("run_vis.py", ["load_dir=images"], "images is not a run directory"),
    ("run_vis.py", ["load_dir=run", "label=10"], "label=10: the classes of this network are 0 to 9"),
    ("run_vis.py", ["load_dir=run", "label=[]"], "label=[]: name at least one class"),
    ("run_vis.py", ["load_dir=run", "label=three"], "label=three: the classes of this network are 0 to 9"),
    ("run_vis.py", ["load_dir=run", "label_frequencies=uniforn"], "label_frequencies=uniforn: known are uniform, null"),
    ("run_vis.py", ["load_dir=run", "w=much"], "w=much: need a number"),
    ("run_vis.py", ["load_dir=run", "guidance.clamp=box"], "guidance.clamp=box: known are hull, null"),
    (
        "run_vis.py",
        ["load_dir=run", "guidance.clmp=hull"],
        "guidance.clmp: no such option; did you mean guidance.clamp?",
    ),
    ("run_vis.py", ["load_dir=run", "guidance.interval=[1]"], "guidance.interval=[1]: need two noise levels, such as"),
    ("run_vis.py", ["load_dir=run", "guidance.interval=0.3"], "guidance.interval=0.3: need two noise levels, such as"),
    ("run_vis.py", ["load_dir=run", "guidance.interval=[2,1]"], "guidance.interval=[2, 1]: need the lower noise level"),
    (
        "run_vis.py",
        ["load_dir=run", "guidance.dir=images"],
        "guidance.dir=images: images/.hydra/config.yaml does not exist",
    ),
    ("run_vis.py", ["load_dir=run", "guidance.ckpt=-2"], "guidance.ckpt=-2: need an integer, at least -1"),
    ("run_vis.py", ["load_dir=run", "guidance.eta=-1"], "guidance.eta=-1: need a number, at least 0"),
    (
        "run_vis.py",
        ["load_dir=run", "guidance.momentum=1"],
        "guidance.momentum=1: need a number, more than -1, less than 1",
    ),
    (
        "run_vis.py",
        ["load_dir=run", "guidance.norm_threshold=0"],
        "guidance.norm_threshold=0: need a number, more than 0",
    ),
    ("run_eval.py", ["load_dir=run", "guidance=hull"], "guidance=hull: need a section with clamp, interval, dir"),
    ("run_vis.py", ["load_dir=run/checkpoints/checkpoint_1.pth", "eval.ckpt=2"], "checkpoint 2 is asked for, but run/"),
    (
        "run_vis.py",
        ["load_dir=run/checkpoints/checkpoint_2.pth"],
        "run/checkpoints has no checkpoint_2.pth: eval.ckpt can be 1",
    ),
    ("run_vis.py", ["load_dir=run", "eval.ckpt=7"], "has no checkpoint_7.pth: eval.ckpt can be 1"),
    ("run_vis.py", ["load_dir=run", "eval.ckpt=-2"], "eval.ckpt=-2: need an integer, at least -1"),
    ("run_vis.py", ["load_dir=run", "eval.ckpt=first"], "eval.ckpt=first: need an integer, at least -1, at most 1e+12"),
    ("run_vis.py", ["load_dir=run", "eval.rounds=0"], "eval.rounds=0: need an integer, at least 1"),
    ("run_vis.py", ["load_dir=run", "sampling.denoiser=network"], "denoiser_path is missing"),
    ("run_vis.py", ["load_dir=run", "sampling.denoiser=network", "denoiser_path=images"], "images is not a run"),
    ("run_vis.py", ["load_dir=run", "sampling.method=ode", "sampling.rtol=0"], "sampling.rtol=0"),
    ("run_eval.py", ["load_dir=run", "metrics=[fd]"], "metrics=fd: known are bpd, elbo, energy_distance, fid"),
    ("run_eval.py", ["load_dir=run", "metrics=[]"], "metrics=[]: choose some of bpd, elbo, energy_distance, fid"),
    ("run_eval.py", ["load_dir=run", "metrics.bpd.divergence=trace"], "metrics.bpd.divergence=trace: known are"),
    (
        "run_eval.py",
        ["load_dir=run", "metrics=[fid]", "metrics.samples_path=gone"],
        "metrics.samples_path=gone does not exist",
    ),
    ("run_eval.py", ["load_dir=run", "metrics=[fid]", "metrics.feature_weights=gone"], "gone cannot be read"),
]


@pytest.mark.parametrize(("script", "typed", "message"), OTHER_CASES, ids=[" ".join(c[1]) for c in OTHER_CASES])
def test_the_other_scripts_and_other_data(run, place, script, typed, message):
    before = contents(place)
    refused(run(script, *typed), message)
    assert contents(place) == before


class Hostile:
    """An object that creates a file when a reader without restrictions unpickles it."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def config(old, new):
    """Replace a text in the configuration."""

    def damage(run_dir):
        path = run_dir / ".hydra/config.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return damage


def checkpoint(change):
    """Replace the checkpoint by one made from its contents."""

    def damage(run_dir):
        path = run_dir / "checkpoints/checkpoint_1.pth"
        contents = torch.load(path, weights_only=True)
        changed = change(contents)
        torch.save(contents if changed is None else changed, path)

    return damage


def raw(change):
    """Change the bytes of the checkpoint."""

    def damage(run_dir):
        path = run_dir / "checkpoints/checkpoint_1.pth"
        path.write_bytes(change(path.read_bytes()))

    return damage


def compressed(run_dir):
    """A checkpoint that grows when it is read."""
    path = run_dir / "checkpoints/checkpoint_1.pth"
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)


def link_to_a_secret(run_dir):
    """Link the configuration to a secret file, whose contents must not be shown."""
    secret = run_dir.parent.parent / "secret"
    secret.write_text("machine: x\npassword: [hunter2\n")
    (run_dir / ".hydra/config.yaml").unlink()
    (run_dir / ".hydra/config.yaml").symlink_to(secret)


def otherwise(make):
    """A checkpoint whose first tensor is something else."""

    def change(contents):
        name, tensor = next(iter(contents["model"].items()))
        contents["model"][name] = make(tensor)

    return checkpoint(change)


def giant(contents):
    """A tensor of a trillion numbers that stores one."""
    name = next(iter(contents["model"]))
    contents["model"][name] = torch.zeros(1).expand(10**6, 10**6)


def entries_of_one_name(run_dir):
    """A checkpoint with an entry a second time."""
    path = run_dir / "checkpoints/checkpoint_1.pth"
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"")


def not_finite(contents):
    """A weight that is no number."""
    contents["ema"]["shadow_params"][0].view(-1)[0] = torch.nan


LINKS = zip("abcdefgh", "bcdefghi", strict=True)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in LINKS)
FILE_CASES = {
    "no configuration": (lambda r: (r / ".hydra/config.yaml").unlink(), "config.yaml does not exist"),
    "empty configuration": (lambda r: (r / ".hydra/config.yaml").write_text(""), "has no model.name"),
    "a list": (lambda r: (r / ".hydra/config.yaml").write_text("- a\n- b\n"), "config.yaml"),
    "not YAML": (lambda r: (r / ".hydra/config.yaml").write_text("{a: ["), "config.yaml cannot be read"),
    "not text": (lambda r: (r / ".hydra/config.yaml").write_bytes(bytes(range(256))), "config.yaml cannot be read"),
    "an alias bomb": (lambda r: (r / ".hydra/config.yaml").write_text(BOMB), "YAML aliases"),
    "deep nesting": (lambda r: (r / ".hydra/config.yaml").write_text("[" * 50_000), "nested too deep"),
    "a giant file": (lambda r: (r / ".hydra/config.yaml").write_text("#" * 2**20), "too long"),
    "an environment variable": (config("name: adm", "name: ${oc.env:HOME}"), "holds an interpolation"),
    "a hydra resolver": (config("name: adm", "name: ${hydra:runtime.cwd}"), "holds an interpolation"),
    "an interpolation spelt otherwise": (config("name: adm", 'name: "\\x24{oc.env:HOME}"'), "holds an interpolation"),
    "another one": (config("dataset: digits", 'dataset: "\\x24{oc.env:HOME}"'), "holds an interpolation"),
    "a missing value": (config("name: adm", "name: adm\n  more: ???"), "holds an interpolation"),
    "a link to a secret": (link_to_a_secret, "config.yaml cannot be read as YAML, line 3"),
    "a _target_": (config("name: adm", "name: adm\n  _target_: os.system"), "_target_"),
    "another network": (config("name: adm", "name: transformer"), "model.name=transformer: known are"),
    "other widths": (config("model_channels: 8", "model_channels: 16"), "checkpoint_1.pth"),
    "a giant network": (config("model_channels: 8", "model_channels: 8192"), "checkpoint_1.pth is too small for the"),
    "an absurd network": (config("model_channels: 8", "model_channels: 10000000"), "at most 8192"),
    "too many blocks": (config("num_blocks: 1", "num_blocks: 100000"), "at most 256"),
    "a giant image": (config("image_size: 8", "image_size: 100000"), "data.image_size=100000"),
    "sigmas exchanged": (config("sigma_max: 5", "sigma_max: 0.001"), "need sigma_min < sigma_max"),
    "no checkpoint": (lambda r: (r / "checkpoints/checkpoint_1.pth").unlink(), "has no checkpoint_*.pth"),
    "empty checkpoint": (raw(lambda b: b""), "checkpoint_1.pth cannot be read"),
    "half a checkpoint": (raw(lambda b: b[: len(b) // 2]), "checkpoint_1.pth cannot be read"),
    "a flipped byte": (raw(lambda b: b[:9000] + bytes([b[9000] ^ 1]) + b[9001:]), "in it is damaged"),
    "a web page": (raw(lambda b: b"<!DOCTYPE html><html>Sign in</html>"), "checkpoint_1.pth cannot be read"),
    "a compressed checkpoint": (compressed, "it is compressed"),
    "a list of tensors": (checkpoint(lambda c: [torch.zeros(3)]), "it holds a list"),
    "hostile code": (checkpoint(lambda c: {**c, "model": Hostile()}), "in model; only tensors and plain"),
    "hostile code, old format": (raw(lambda b: pickle.dumps(Hostile())), "cannot be read as a checkpoint"),
    "a tensor too few": (checkpoint(lambda c: c["model"].popitem() and None), "which the network"),
    "a tensor too many": (checkpoint(lambda c: c["model"].update(extra=torch.zeros(1))), "has extra"),
    "a giant tensor": (checkpoint(giant), "the network wants"),
    "a tensor without numbers": (otherwise(lambda t: t.to("meta")), "is not a dense tensor of real numbers"),
    "a nested tensor": (otherwise(lambda t: torch.nested.nested_tensor([t, t])), "checkpoint_1.pth"),
    "a sparse tensor": (otherwise(lambda t: t.to_sparse()), "is not a dense tensor of real numbers"),
    "complex numbers": (otherwise(lambda t: t.to(torch.complex64)), "is not a dense tensor of real numbers"),
    "whole numbers": (otherwise(lambda t: t.to(torch.int64)), "is of type int64, weights are float16, bfloat16"),
    "bits": (otherwise(lambda t: torch.zeros(t.shape, dtype=torch.uint8).view(torch.bits8)), "is of type bits8"),
    "a name with escapes": (checkpoint(lambda c: c["model"].update({"\x1b[2J\nx": torch.zeros(1)})), "has "),
    "entries of one name": (entries_of_one_name, "several of its entries have one name"),
    "weights that are not finite": (checkpoint(not_finite), "holds values that are not finite"),
    "a long flow": (lambda r: (r / ".hydra/config.yaml").write_text("a: [" + "1,\n" * 125_000), "is too long for the"),
    "averages of others": (checkpoint(lambda c: c["ema"]["shadow_params"].pop() and None), "ema.shadow_params"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILE_CASES)
def test_a_damaged_or_hostile_run(run, place, case):
    damage, message = FILE_CASES[case]
    bad = place / "bad"
    shutil.copytree(place / "run", bad)
    try:
        damage(bad)
        before = contents(place)
        refused(run("run_vis.py", "load_dir=bad", *QUICK), message)
        assert contents(place) == before or contents(place).keys() - before.keys() <= {place / "out"}
        assert not (place / "ran").exists()
    finally:
        shutil.rmtree(bad)
        shutil.rmtree(place / "out", ignore_errors=True)


def test_a_damaged_file_of_data(run, place):
    for name, data in (("cut.png", b"\x89PNG\r\n\x1a\n cut"), ("page.jpg", b"<html>")):
        (place / f"images/{name}").write_bytes(data)
    train_on = [*TINY, "data=folder", "data.root=images", "data.image_size=8", "model.model_channels=8"]
    summarized = run("run_train.py", *train_on, "training.n_iters=0", "hydra.run.dir=summarized", "dataroot=data")
    assert summarized.returncode == 0, said(summarized)
    assert all(f"{name} cannot be read and is left out" in said(summarized) for name in ("cut.png", "page.jpg"))
    for folder in ("summarized", "data"):
        shutil.rmtree(place / folder)


def test_an_output_that_cannot_be_written(run, place):
    (place / "file").write_text("in the way")
    refused(run("run_vis.py", "load_dir=run", *QUICK[:-1], "hydra.run.dir=file/below"), "file/below")
    (place / "file").unlink()


def test_the_traceback_comes_back_on_demand(run):
    told = run("run_vis.py", "load_dir=nowhere", "debug=true")
    assert told.returncode == 1 and "Traceback" in said(told) and "nowhere is not a run directory" in said(told)


def examples(pytestconfig):
    """Generate ``--fuzz`` cases, the same ones each time."""
    count, checks = pytestconfig.getoption("fuzz"), list(HealthCheck)
    return settings(max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=checks)


@pytest.mark.slow(10)
def test_fuzz_of_damaged_files(run, place, pytestconfig):
    """Cut, change or double bytes of a checkpoint or an exported file: an error, or the same images, must result."""
    counts = {"refused": 0, "unharmed": 0}
    load = {"checkpoint": "fuzzed", "export": "fuzzed.safetensors"}
    shutil.copytree(place / "run", place / "fuzzed")
    paths = {"checkpoint": place / "fuzzed/checkpoints/checkpoint_1.pth", "export": place / "fuzzed.safetensors"}
    whole = {
        "checkpoint": paths["checkpoint"].read_bytes(),
        "export": (place / "model.safetensors").read_bytes(),
    }

    def images(kind):
        result = run("run_vis.py", f"load_dir={load[kind]}", *QUICK)
        drawn = place / "out/images/samples_0.npz"
        arrays = np.load(drawn)["samples"] if result.returncode == 0 else None
        shutil.rmtree(place / "out", ignore_errors=True)
        return result, arrays

    paths["export"].write_bytes(whole["export"])
    right = {kind: images(kind)[1] for kind in whole}

    @examples(pytestconfig)
    @given(st.data())
    def attempt(data):
        kind = data.draw(st.sampled_from(sorted(whole)))
        intact = whole[kind]
        how = data.draw(st.sampled_from(["cut", "flip", "zero", "double", "junk"]))
        start = data.draw(
            st.one_of(st.integers(0, len(intact) - 1), st.integers(0, 300).map(lambda n: len(intact) - 1 - n))
        )
        length = data.draw(st.sampled_from([1, 2, 8, 64, 1000]))
        piece = intact[start : start + length]
        new = {
            "cut": b"",
            "flip": bytes(byte ^ (1 << data.draw(st.integers(0, 7))) for byte in piece[:1]) + piece[1:],
            "zero": bytes(len(piece)),
            "double": piece + piece,
            "junk": data.draw(st.binary(min_size=1, max_size=16)),
        }[how]
        tail = b"" if how == "cut" and length == 1000 else intact[start + length :]
        paths[kind].write_bytes(intact[:start] + new + tail)
        result, drawn = images(kind)
        assert "Traceback" not in said(result), said(result)
        if result.returncode == 0:
            assert np.array_equal(drawn, right[kind]), "other images, and no error"
            counts["unharmed"] += 1
        else:
            lines = [line for line in said(result).splitlines() if line.strip()]
            assert result.returncode == 1 and len(lines) == 1 and str(paths[kind].name) in lines[0], said(result)
            counts["refused"] += 1

    try:
        attempt()
    finally:
        shutil.rmtree(place / "fuzzed")
        paths["export"].unlink(missing_ok=True)
        shutil.rmtree(place / "out", ignore_errors=True)
    print(counts)
    assert counts["refused"] > counts["unharmed"]


VALUES = [
    "0",
    "1",
    "-1",
    "3",
    "0.5",
    "-0.5",
    "1e-300",
    "1e300",
    "nan",
    "inf",
    "null",
    "true",
    "off",
    "''",
    "x",
    "[]",
    "[1]",
    "[1,2]",
    "{a:1}",
    "${x}",
    "1e-3",
    "8",
    "7",
    "16",
]
TAGGED = [
    *("!!bool x", "!!int ''", "!!int '_'", "!!float ''", "!!timestamp x", "!!binary x", "!!set {a}", "!!omap []"),
    *("!!pairs []", "!!python/none ''", "!!python/tuple [1]", "!!merge x", "2001-01-01", "=", "-", "? a", "'\\x1b'"),
    *(f"1:{'59:' * 1300}59.5", "1" * 4096, "9" * 400 + ".5", "0x" + "f" * 4000, "'???'", "{1: {2: 3}}", "1: 2: 3"),
]
FUZZED_KEYS = [
    key
    for key in option_keys("train")
    if key not in ("resume", "dataroot", "data.root", "ngpus", "device", "debug", "training.n_iters", "hydra")
    and not key.startswith(("training.startup", "training.step_t"))
]


SCRIPTS = {
    "run_train.py": [
        *(o for o in TINY if not o.startswith("training.n_iters")),
        "training.n_iters=1",
        "eval.batch_size=2",
    ],
    "run_vis.py": ["load_dir=run", *QUICK[:-1]],
    "run_eval.py": ["load_dir=run", *QUICK[:-1], "eval.images=2", "metrics.bpd.rtol=0.1", "metrics.bpd.atol=0.1"],
}
KEYS = {"run_train.py": FUZZED_KEYS, "run_vis.py": option_keys("vis"), "run_eval.py": option_keys("eval")}
NOT_FUZZED = ("load_dir", "eval.images", "eval.rounds", "eval.batch_size", "ngpus", "metrics.elbo.num_times", "metrics")


def test_fuzz_of_configurations(run, place, pytestconfig):
    """Give random values to options: a run or a one-line error must result, no traceback and no hang."""
    counts = {"refused": 0, "ran": 0}

    @examples(pytestconfig)
    @given(st.data())
    def attempt(data):
        script = data.draw(st.sampled_from(sorted(SCRIPTS)))
        keys = [key for key in KEYS[script] if script == "run_train.py" or key not in NOT_FUZZED]
        changes = st.lists(st.tuples(st.sampled_from(keys), st.sampled_from(VALUES)), min_size=1, max_size=3)
        typed = [f"{key}={value}" for key, value in data.draw(changes)]
        result = run(script, *SCRIPTS[script], *typed, "hydra.run.dir=fuzz")
        shutil.rmtree(place / "fuzz", ignore_errors=True)
        assert "Traceback" not in said(result), (typed, said(result))
        lines = [line for line in said(result).splitlines() if line.strip()]
        assert result.returncode == 0 or (result.returncode == 1 and lines), (typed, result.returncode, said(result))
        counts["ran" if result.returncode == 0 else "refused"] += 1

    attempt()
    print(counts)
    assert min(counts.values()) > 0


def test_fuzz_of_the_configuration_of_a_run(place, pytestconfig):
    """Put random values, tags or keys into a configuration: a network, or one line that names the file, must result."""
    lines = (place / "run/.hydra/config.yaml").read_text().splitlines()
    places = [number for number, line in enumerate(lines) if re.match(r" *\w+: \S", line)]
    counts, refusals = {"refused": 0, "read": 0}, []

    @examples(pytestconfig)
    @given(st.data())
    def attempt(data):
        new = list(lines)
        for number in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=2)):
            key, _, value = lines[number].partition(":")
            drawn = data.draw(st.sampled_from([*VALUES, *TAGGED]))
            indent = key[: len(key) - len(key.lstrip())]
            new[number] = f"{indent}{drawn}:{value}" if data.draw(st.integers(0, 5)) == 0 else f"{key}: {drawn}"
        try:
            build_shapes(parse_config("\n".join(new), Path("config.yaml")), Path("config.yaml"))
            counts["read"] += 1
        except InputError as error:
            refusals.append(str(error))
            counts["refused"] += 1

    attempt()
    print(counts)
    assert min(counts.values()) > 0
    assert all(refusal.startswith("config.yaml") and "\n" not in refusal for refusal in refusals)


def test_hostile_exported_file_claims_no_more_than_it_holds(place, run):
    tensors = load_file(place / "model.safetensors")
    save_file(tensors, place / "other.safetensors", metadata={"config": "model: {name: adm}"})
    refused(run("run_vis.py", "load_dir=other.safetensors", *QUICK), "its checksum is another")
    save_file(tensors, place / "other.safetensors")
    refused(run("run_vis.py", "load_dir=other.safetensors", *QUICK), "holds no configuration")
    os.truncate(place / "other.safetensors", 4)
    refused(run("run_vis.py", "load_dir=other.safetensors", *QUICK), "other.safetensors cannot be read")
    (place / "other.safetensors").unlink()

"""Loading of published model directories and of runs of this code, and their exports."""

import collections
import datetime
import os
import pathlib
import re
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from models import create_model, load_pretrained
from models.export import export, main
from models.io.checkpoint import read_checkpoint
from models.io.config import load_config, parse_config
from models.io.pretrained import build_shapes
from models.io.published import from_published, published_tensors, to_published
from models.io.safetensors import digest
from tests.conftest import composed
from tests.models.test_models import GOLDEN, SMALL, published_checkpoint
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

RUN = GOLDEN / "reference_run"


@pytest.fixture
def run(tmp_path):
    """Make a copy of the published run that a test may damage."""
    return shutil.copytree(RUN, tmp_path / "run", copy_function=shutil.copyfile)


def changed(run, change):
    """Apply ``change`` to the contents of the run's checkpoint."""
    path = run / "checkpoints/checkpoint_1.pth"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def test_a_published_run_gives_the_published_score():
    net, cfg = load_pretrained(RUN)
    golden = np.load(GOLDEN / "reference_run_ema_score.npz")
    score = net(torch.tensor(golden["x"]), torch.tensor(golden["sigma"])).numpy()
    assert np.abs(score - golden["score"]).max() <= 2e-6 * np.abs(golden["score"]).max()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert (cfg.model.name, cfg.data.dataset, cfg.data.classes) == ("ddpmpp", "cifar10", False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sde.num_scales", 10**12, r"sde\.num_scales=1000000000000"),
        ("sde.num_scales", "many", "sde.num_scales=many: need an integer"),
        ("model.name", ["ncsnpp"], "known are ddpmpp, vdm, adm"),
        ("model.nf", "wide", "model.nf=wide: need an integer"),
        ("data", {"dataset": ["CIFAR10"], "image_size": 8, "num_channels": 3}, "unhashable"),
    ],
)
def test_a_configuration_that_describes_no_network_is_refused(run, key, value, message):
    cfg = OmegaConf.load(run / ".hydra/config.yaml")
    OmegaConf.update(cfg, key, value, merge=False)
    OmegaConf.save(cfg, run / ".hydra/config.yaml")
    with pytest.raises(InputError, match=message):
        load_pretrained(run)


@pytest.mark.parametrize("network", SMALL)
def test_a_published_directory_of_any_network_gives_the_published_score(network, tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "checkpoints").mkdir()
    shutil.copyfile(GOLDEN / f"{network}.yaml", tmp_path / ".hydra/config.yaml")
    cfg = load_config(tmp_path)
    checkpoint, trained = published_checkpoint(create_model(cfg.model, cfg.data, cfg.sde).network, cfg)
    for name in trained:
        checkpoint["model"][name] = torch.zeros_like(checkpoint["model"][name])  # the averages are what counts
    torch.save(checkpoint, tmp_path / "checkpoints/checkpoint_9.pth")
    for stray in ("checkpoint_10.pth.tmp", "checkpoint_.pth", "checkpoint.pth", "checkpoint_011.pth", "notes.txt"):
        (tmp_path / "checkpoints" / stray).touch()
    (tmp_path / "checkpoints/checkpoint_12.pth").mkdir()

    net, _ = load_pretrained(tmp_path)
    golden = np.load(GOLDEN / f"{network}.npz")
    x, sigma, labels = (torch.tensor(golden[key]) for key in ("x", "sigma", "labels"))
    score = net(x, sigma, labels if net.num_classes else None).numpy()
    for image, reference in zip(score, golden["score"], strict=True):
        assert np.linalg.norm(image - reference) <= 2e-6 * np.linalg.norm(reference)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fir", True),
        ("progressive", "output_skip"),
        ("progressive_input", "none"),
        ("resblock_type", "ddpm"),
        ("embedding_type", "positional"),
        ("nonlinearity", "relu"),
        ("conditional", False),
    ],
)
def test_unsupported_variants_are_named(run, key, value):
    cfg = OmegaConf.load(run / ".hydra/config.yaml")
    cfg.model[key] = value
    OmegaConf.save(cfg, run / ".hydra/config.yaml")
    with pytest.raises(InputError, match=rf"config\.yaml.*{key}"):
        load_pretrained(run)


@pytest.fixture
def saved_on_a_gpu_by_numpy_1(monkeypatch, tmp_path):
    """Make torch.save write as the published code did: storages on cuda:0, and names of numpy 1."""

    def save(contents, path):
        monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save(contents, tmp_path / "saved")
        monkeypatch.undo()
        with zipfile.ZipFile(tmp_path / "saved") as saved, zipfile.ZipFile(path, "w") as rewritten:
            for name in saved.namelist():
                data = saved.read(name)
                if name.endswith("data.pkl"):
                    assert b"cuda:0" in data
                    data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
                rewritten.writestr(name, data)

    return save


@pytest.mark.parametrize("network", SMALL)
def test_the_state_after_a_published_step_is_read(network, tmp_path, saved_on_a_gpu_by_numpy_1):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "checkpoints").mkdir()
    shutil.copyfile(GOLDEN / f"{network}.yaml", tmp_path / ".hydra/config.yaml")
    cfg = load_config(tmp_path)
    contents, _ = published_checkpoint(create_model(cfg.model, cfg.data, cfg.sde).network, cfg)
    params = [nn.Parameter(average.clone()) for average in contents["ema"]["shadow_params"]]
    optimizer, scaler = torch.optim.Adam(params), torch.amp.GradScaler("cpu")
    for step in range(3):  # as the published code warms its learning rate up
        for group in optimizer.param_groups:
            group["lr"] = 2e-4 * np.minimum(step / 5000, 1.0)
        scaler.scale(sum((p**2).sum() for p in params)).backward()
        scaler.step(optimizer)
        scaler.update()
    contents |= {"optimizer": optimizer.state_dict(), "step": 3, "scaler": scaler.state_dict()}
    path = tmp_path / "checkpoints/checkpoint_1.pth"
    saved_on_a_gpu_by_numpy_1(contents, path)

    net, _ = load_pretrained(tmp_path)
    golden = np.load(GOLDEN / f"{network}.npz")
    x, sigma, labels = (torch.tensor(golden[key]) for key in ("x", "sigma", "labels"))
    score = net(x, sigma, labels if net.num_classes else None).numpy()
    assert np.abs(score - golden["score"]).max() <= 2e-6 * np.abs(golden["score"]).max()
    read = read_checkpoint(path)
    (group,) = read["optimizer"]["param_groups"]
    assert (type(group["lr"]), group["lr"]) == (float, 8e-8)
    assert read["scaler"] == {**scaler.state_dict(), "scale": 65536.0} and read["step"] == 3


def test_a_directory_that_the_published_code_wrote_gives_the_published_score():
    run_dir = GOLDEN / "published_after_training/ddpmpp"
    net, cfg = load_pretrained(run_dir)
    golden = np.load(GOLDEN / "published_after_training/ddpmpp_ema_score.npz")
    score = net(torch.tensor(golden["x"]), torch.tensor(golden["sigma"])).numpy()
    assert np.abs(score - golden["score"]).max() <= 2e-6 * np.abs(golden["score"]).max()
    assert (cfg.model.name, cfg.data.dataset, cfg.optim.warmup) == ("ddpmpp", "cifar10", 5000)
    for path in (run_dir / "checkpoints/checkpoint_1.pth", run_dir / "checkpoints-meta/checkpoint.pth"):
        assert b"cnumpy.core.multiarray\nscalar" in path.read_bytes()  # what nothing could read
        assert type(read_checkpoint(path)["optimizer"]["param_groups"][0]["lr"]) is float


NUMBERS = {
    **{"float64": -1.5, "float32": 0.25, "float16": 2.0, "longdouble": 1.25, "bool_": True, "complex64": 1 + 2j},
    **{"int8": -3, "int16": -(2**14), "int32": 7, "int64": -(2**40), "uint8": 255, "uint64": 2**63},
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_numpy_is_read_as_that_of_python(name, tmp_path, saved_on_a_gpu_by_numpy_1):
    value, scalar = NUMBERS[name], getattr(np, name)(NUMBERS[name])
    swapped = np.array([value], np.dtype(type(scalar)).newbyteorder(">"))[0]
    contents = {"weights": torch.ones(2), "here": [scalar, swapped, scalar]}
    saved_on_a_gpu_by_numpy_1(contents, tmp_path / "numpy1")
    torch.save(contents, tmp_path / "numpy2")
    for version in ("numpy1", "numpy2"):
        here = read_checkpoint(tmp_path / version)["here"]
        assert here == [value] * 3 and {type(number) for number in here} == {type(value)}


class Dangerous:
    """An object that runs a command when a reader without restrictions unpickles it."""

    def __reduce__(self):
        return (os.system, ("touch ran",))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.ones(1), "numpy.ndarray"),
        (np.datetime64("2020-01-01"), "a numpy scalar of type M8"),
        (np.str_("rate"), "a numpy scalar of type U4"),
        (np.array([object()], object)[:0], "numpy.ndarray"),
        (datetime.date(2023, 4, 10), "datetime.date"),
        (Dangerous(), f"{os.name}.system"),
        (collections.deque([1]), "collections.deque"),
        (pathlib.Path.cwd, "builtins.getattr"),
    ],
)
def test_a_refusal_says_what_was_found_and_where(value, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {"step": 1, "optimizer": {"state": {0: (torch.ones(3),)}, "param_groups": [{"lr": value}]}}
    torch.save(contents, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"x\.pth.*it holds {re.escape(named)}.* in optimizer\.param_groups\[0\]\.lr"):
        read_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_spelling_and_keys_that_were_never_read_do_not_matter(run):
    cfg = OmegaConf.load(run / ".hydra/config.yaml")
    cfg.model.update({"progressive": "None", "attention_type": "else", "progressive_combine": "cat", "conv_size": 5})
    del cfg.model.fir
    OmegaConf.save(cfg, run / ".hydra/config.yaml")
    assert load_pretrained(run)[0].num_classes == 0


def test_a_key_that_the_public_code_does_not_have_is_a_warning(run, caplog):
    expected, _ = load_pretrained(run)
    cfg = OmegaConf.load(run / ".hydra/config.yaml")
    cfg.model.update({"depth": 3, "image_size": "${data.image_size}"})
    cfg.data.centered = False
    cfg.sde.beta = [1, 2]
    cfg.logdir = "${now:%Y}"
    cfg.slurm = {"partition": "???"}
    OmegaConf.save(cfg, run / ".hydra/config.yaml")
    net, ours = load_pretrained(run)
    assert all(map(torch.equal, net.parameters(), expected.parameters()))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    keys = ("sde.beta", "model.depth", "model.image_size", "data.centered")
    assert told == [f"{run / '.hydra/config.yaml'}: {key} is unknown here and ignored" for key in keys]
    assert not {"depth", "image_size"} & ours.model.keys() and "logdir" not in ours and "slurm" not in ours
    assert ours.optim.lr == 2e-4


def test_a_run_of_ours_whose_process_has_a_name_is_not_taken_for_a_published_one(tmp_path):
    cfg = composed("data=digits", "data.classes=false", "model=adm", "sde.name=reflected_ve", "+model.depth=3")
    with pytest.raises(InputError, match=r"config\.yaml: .*depth"):
        build_shapes(parse_config(OmegaConf.to_yaml(cfg), tmp_path / "config.yaml"), tmp_path / "config.yaml")
    del cfg.model.depth
    ours = parse_config(OmegaConf.to_yaml(cfg), tmp_path / "config.yaml")
    assert ours.data.classes is False and ours.data.num_classes == 10  # a published ADM would have its ten classes


@pytest.mark.parametrize("key", ["model.nf", "data.image_size", "sde.sigma_max"])
def test_an_interpolation_is_refused_where_it_would_be_read(run, key):
    cfg = OmegaConf.load(run / ".hydra/config.yaml")
    OmegaConf.update(cfg, key, "${oc.env:HOME}")
    OmegaConf.save(cfg, run / ".hydra/config.yaml")
    with pytest.raises(InputError, match=r"config\.yaml: holds an interpolation"):
        load_pretrained(run)


W = "all_modules.8.NIN_0.W"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop(W), f"has no {W}"),
        (lambda c: c["model"].update(extra=torch.zeros(1)), "has extra"),
        (lambda c: c["model"].update({W: torch.zeros(3, 16)}), rf"{W} is \(3, 16\), the network wants \(16, 16\)"),
        (lambda c: c["model"].update({W: "weights"}), f"{W} is not a dense tensor"),
        (lambda c: c["model"].update(sigmas=torch.zeros(7)), r"sigmas is \(7,\)"),
        (lambda c: c["ema"]["shadow_params"].pop(), "holds 155 tensors, the network has 156"),
        (lambda c: c["ema"]["shadow_params"].reverse(), r"average of all_modules\.1\.weight is \(3,\)"),
        (lambda c: c["ema"].pop("shadow_params"), "not a checkpoint of a run"),
        (lambda c: c.pop("ema"), "not a checkpoint of a run"),
        (lambda c: c.update(model=3), "not a checkpoint of a run"),
    ],
)
def test_loading_is_strict(run, change, message):
    changed(run, change)
    with pytest.raises(InputError, match=rf"checkpoint_1\.pth.*{message}"):
        load_pretrained(run)


def spoilt(value, where):
    """Return a change of a checkpoint that sets a number of a tensor to ``value``."""

    def change(checkpoint):
        tensors = checkpoint["model"] if where == "model" else {W: checkpoint["ema"]["shadow_params"][28]}
        tensors[W].view(-1)[5] = value

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("where", "named"), [("model", W), ("ema", "the average of all_modules.")])
def test_weights_that_are_not_finite_are_named(run, where, named, value):
    changed(run, spoilt(value, where))
    with pytest.raises(InputError, match=rf"checkpoint_1\.pth: {re.escape(named)}.* holds values that are not finite"):
        load_pretrained(run)


def exported_file(folder):
    """Export a file; return its path, the configuration in it, and its tensors."""
    path = folder / "model.safetensors"
    export(RUN, path, "safetensors")
    with safe_open(path, framework="pt") as file:
        return path, file.metadata()["config"], load_file(path)


def test_an_exported_file_with_numbers_beyond_float32_is_refused(tmp_path):
    path, config, exported = exported_file(tmp_path)
    tensors = {name: tensor.double() for name, tensor in exported.items()}
    tensors["conv_in.bias"][0] = 1e300
    save_file(tensors, path, metadata={"config": config, "sha256": digest(config, tensors)})
    with pytest.raises(InputError, match=r"model\.safetensors: conv_in\.bias holds values that are not finite"):
        load_pretrained(path)


def test_an_exported_file_of_other_numbers_than_floating_point_is_refused(tmp_path):
    path, config, exported = exported_file(tmp_path)
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.uint16, torch.bool, torch.int64):
        tensors = {name: tensor.to(dtype) for name, tensor in exported.items()}
        save_file(tensors, path, metadata={"config": config, "sha256": digest(config, tensors)})
        if dtype == torch.bfloat16:
            assert torch.equal(load_pretrained(path)[0].network.conv_in.bias, tensors["conv_in.bias"].float())
        else:
            with pytest.raises(
                InputError, match=rf" is of type {str(dtype)[6:]}, weights are float16, bfloat16, float32"
            ):
                load_pretrained(path)


def test_a_filter_of_other_values_is_another_network(tmp_path):
    cfg = OmegaConf.load(GOLDEN / "adm_small.yaml")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "checkpoints").mkdir()
    OmegaConf.save(cfg, tmp_path / ".hydra/config.yaml")
    ours = load_config(tmp_path)
    checkpoint, _ = published_checkpoint(create_model(ours.model, ours.data, ours.sde).network, ours)
    checkpoint["model"]["model.enc.8x8_down.conv0.resample_filter"] = torch.ones(1, 1, 2, 2)
    torch.save(checkpoint, tmp_path / "checkpoints/checkpoint_1.pth")
    with pytest.raises(InputError, match="resample_filter does not hold the values"):
        load_pretrained(tmp_path)


def test_a_published_run_is_not_resumed(script, run):
    before = (run / ".hydra/config.yaml").read_bytes()
    result = script("run_train.py", f"resume={run}")
    assert result.returncode != 0 and "was not trained by this code" in result.stderr
    assert "Traceback" not in result.stderr
    assert (run / ".hydra/config.yaml").read_bytes() == before


def test_a_published_run_is_drawn_from_by_both_methods(script, tmp_path):
    for method in ("pc", "ode"):
        options = [f"sampling.method={method}", "sampling.steps=4", "eval.batch_size=3", f"hydra.run.dir={method}"]
        drawn = script("run_vis.py", f"load_dir={RUN}", *options, "sampling.rtol=1e-2", "sampling.atol=1e-2")
        assert drawn.returncode == 0, drawn.stderr
        samples = np.load(tmp_path / method / "images/samples_0.npz")["samples"]
        assert samples.shape == (3, 8, 8, 3) and samples.std() > 10


NETWORKS = {
    "ddpmpp": ["model.nf=8", "model.ch_mult=[1,2]", "model.num_res_blocks=1", "model.attn_resolutions=[4]"],
    "vdm": ["model.channels=8", "model.num_blocks=1", "model.attention=true"],
    "adm": ["model.model_channels=64", "model.channel_mult=[1,1]", "model.num_blocks=1", "data.classes=true"],
}


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, tmp_path_factory):
    """Train a run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    options = ["data=digits", "data.classes=false", f"model={request.param}", *NETWORKS[request.param]]
    options += ["training.n_iters=2", "training.batch_size=8", "training.snapshot_sampling=false", "eval.batch_size=8"]
    cfg = composed(*options)
    with open_dict(cfg):
        del cfg.resume
    train(cfg, folder, Distributed(torch.device("cpu")))
    return folder


def scores(path):
    net, cfg = load_pretrained(path)
    generator = torch.Generator().manual_seed(0)
    return net(torch.rand(3, 1, 8, 8, generator=generator), torch.tensor([0.02, 0.3, 4.0])), cfg


def test_an_exported_run_is_a_published_one_and_computes_the_same(trained, tmp_path):
    export(trained, tmp_path / "out")
    (before, cfg), (after, cfg_after) = scores(trained), scores(tmp_path / "out")
    assert torch.equal(before, after)
    assert cfg_after.model == cfg.model and cfg_after.data == cfg.data

    ours = torch.load(trained / "checkpoints/checkpoint_1.pth", weights_only=True)
    theirs = torch.load(tmp_path / "out/checkpoints/checkpoint_1.pth", weights_only=True)
    reference = torch.load(RUN / "checkpoints/checkpoint_1.pth", weights_only=True)
    assert theirs.keys() == reference.keys() and theirs["ema"].keys() == reference["ema"].keys()
    assert theirs["step"] == 2 and (theirs["scaler"] is None) == (cfg.model.name != "adm")
    net = create_model(cfg.model, cfg.data, cfg.sde).network
    table = published_tensors(net, cfg.sde)
    assert list(theirs["model"]) == [entry.name for entry in table]
    trainable = [entry for entry in table if entry.ours and net.get_parameter(entry.ours).requires_grad]
    for entry, shadow in zip(trainable, theirs["ema"]["shadow_params"], strict=True):
        index = [e.ours for e in trainable].index(entry.ours)
        assert torch.equal(entry.convert(shadow), ours["ema"]["shadow_params"][index])
    # The optimiser of the published code counts all parameters, the frozen frequencies of DDPM++ too.
    everything = [entry for entry in table if entry.ours]
    assert theirs["optimizer"]["param_groups"][0]["params"] == list(range(len(everything)))
    assert len(theirs["optimizer"]["state"]) == len(trainable)
    # The switches of the machine that trained would be taken over, and fail, on another kind of machine.
    (group,), (own,) = theirs["optimizer"]["param_groups"], ours["optimizer"]["param_groups"]
    assert {key for key in group if group[key] != own[key]} <= {
        "params",
        "fused",
        "foreach",
    } and group.keys() == own.keys()
    assert own["fused"] is True and group["fused"] is None and group["foreach"] is None
    for index, moments in theirs["optimizer"]["state"].items():
        assert moments["exp_avg"].shape == theirs["model"][everything[index].name].shape


def test_an_exported_file_holds_everything(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    export(trained, path, "safetensors")
    (before, cfg), (after, cfg_after) = scores(trained), scores(path)
    assert torch.equal(before, after) and cfg_after == cfg
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    doubled = {name: tensor.double() for name, tensor in load_file(path).items()}
    save_file(doubled, path, metadata={**metadata, "sha256": digest(metadata["config"], doubled)})
    assert torch.equal(scores(path)[0], before)  # whatever numbers it holds, the network is float32
    save_file(doubled, path, metadata=metadata)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: its checksum is another"):
        load_pretrained(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load_pretrained(path)


def test_export_of_a_published_run_and_its_refusals(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
        main()

    command(RUN, tmp_path / "a.safetensors", "--format", "safetensors")
    assert "wrote" in capsys.readouterr().out
    assert torch.equal(*(load_pretrained(p)[0].network.conv_in.weight for p in (RUN, tmp_path / "a.safetensors")))
    for arguments, message in [
        ((RUN, tmp_path / "b"), "in the published layout already"),
        ((RUN, tmp_path / "a.safetensors", "--format", "safetensors"), "a.safetensors exists"),
        ((RUN, tmp_path / "b.safetensors"), "--format published is a directory"),
        ((RUN, tmp_path / "b", "--ckpt", "3"), "no checkpoint_3.pth"),
        ((tmp_path / "nowhere", tmp_path / "b"), "is not a run directory"),
        ((tmp_path / "no\x1b[2J\nwhere\u202e", tmp_path / "b"), "is not a run directory"),
    ]:
        with pytest.raises(SystemExit, match=message) as refusal:
            command(*arguments)
        assert str(refusal.value).isprintable()
    with pytest.raises(SystemExit):
        command(RUN, tmp_path / "b", "more\x1b[2J")
    assert capsys.readouterr().err.endswith("unrecognized arguments: more\\x1b[2J\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="holds no configuration"):
        load_pretrained(tmp_path / "a.safetensors")


def test_a_published_adm_looks_at_the_number_of_classes_alone():
    cfg = OmegaConf.to_container(OmegaConf.load(GOLDEN / "adm_small.yaml"))
    cfg["data"]["classes"] = False
    ours = from_published(cfg)
    assert ours["data"]["classes"] is True
    ours["data"]["classes"] = False
    assert to_published(ours)["data"]["num_classes"] == 0


def test_the_configuration_of_an_export_is_what_the_published_code_writes():
    theirs = OmegaConf.to_container(OmegaConf.load(RUN / ".hydra/config.yaml"))
    again = to_published(from_published(theirs))
    assert again.pop("data") == {**theirs.pop("data"), "num_classes": 0}
    assert again == theirs

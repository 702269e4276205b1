"""data=array as a user runs it: tables and arrays in their own units, from training to samples and densities."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datasets import load_configured
from evaluation import log_likelihood
from models import load_pretrained
from models.export import export
from sde import create_process
from tests.conftest import ROOT, assert_same, environment, metrics, read, wait_for_steps
from tests.scripts.test_bad_input import contents, refused
from utils.seeds import Stream, image_generators

TINY = ["data=array", "device=cpu", "training.n_iters=2", "training.batch_size=8", "training.log_freq=1"]
TINY += ["training.eval_freq=2", "eval.batch_size=20", "sampling.steps=3", "optim.lr=1e-2", "optim.warmup=0"]
MLP = ["model=mlp", "model.width=16", "model.num_blocks=1"]
TABLE = ["data.root=x.csv", "data.labels=kind", "data.classes=true", "data.low=[0,0,null]"]
DRAW = ["device=cpu", "sampling.method=multistep", "sampling.steps=3", "eval.batch_size=6"]
KINDS = ["hail", "rain", "snow"]


@pytest.fixture
def run(script):
    """Run a script that must succeed."""

    def succeed(name, *args):
        result = script(name, *args)
        assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
        return result

    return succeed


@pytest.fixture
def train(run):
    """Train in RUN, or where ``hydra.run.dir`` says."""
    return lambda *args: run("run_train.py", *TINY, "hydra.run.dir=RUN", *args)


def rows(count=200):
    """Rain with dry days and no largest value, a percentage with both ends, and a temperature without atoms."""
    generator = np.random.default_rng(0)
    x = np.stack(
        [generator.exponential(4.0, count), generator.uniform(0, 100, count), generator.normal(9, 5, count)], 1
    )
    x[::4, 0], x[1::5, 1], x[2::5, 1] = 0.0, 0.0, 100.0
    return x


def write_table(folder, name="x.csv", count=200):
    x = rows(count)
    lines = [f"{a!r},{b!r},{c!r},{KINDS[i % 3]}" for i, (a, b, c) in enumerate(x.tolist())]
    (folder / name).write_text("\n".join(["rain,cover,heat,kind", *lines]) + "\n")
    return x


WEATHER = ["data.root=x.csv", "data.labels=kind", "data.classes=true", "data.high=[open,100,40]", "data.low=[0,0,-20]"]
WEATHER += ["sde.sigma_min=0.05", *MLP]


def samples(folder, out="OUT", r=0):
    with np.load(folder / out / f"images/samples_{r}.npz") as arrays:
        return arrays["samples"]


def is_picture(path):
    """Tell whether a file is a picture that is not blank."""
    return path.is_file() and len(np.unique(np.asarray(Image.open(path).convert("L")))) > 3


def assert_weather(x, scale, sigma):
    """Assert that samples are in bounds, and that none is beside a bound with an atom without lying on it."""
    assert x.dtype == np.float64 and x.shape[1:] == (3,) and np.isfinite(x).all()
    assert np.all(x >= [0, 0, -20]) and np.all(x[:, 1:] <= [100, 40])
    u = np.stack([-np.expm1(-x[:, 0] / scale), x[:, 1] / 100], 1)
    beside = (u > 0) & (u < 3 * sigma - 1e-6), (u[:, 1] < 1) & (u[:, 1] > 1 - 3 * sigma + 1e-6)
    assert not beside[0].any() and not beside[1].any()
    assert (x[:, 0] == 0).any() and (x[:, 1] == 0).any() and (x[:, 1] == 100).any()
    assert len(np.unique(x[:, 2])) == len(x), "no atom where the data have none"


@pytest.mark.slow(20)
def test_a_table_from_training_to_samples(run, train, tmp_path):
    """Train, resume in two ways, draw by name and from an export: the same numbers, in the units of the table."""
    x = write_table(tmp_path)
    train(*WEATHER, "eval.batch_size=60", "training.snapshot_freq=2")
    run("run_train.py", "resume=RUN", "training.n_iters=3")
    train(*WEATHER, "eval.batch_size=60", "training.snapshot_freq=2", "training.n_iters=4")
    assert [entry["step"] for entry in metrics(tmp_path / "RUN")] == [1, 2, 3, 4]
    data = load_pretrained(tmp_path / "RUN")[1].data
    assert (data.shape, data.columns, data.class_names) == ([3], ["rain", "cover", "heat"], KINDS)
    assert (data.low, data.high, data.levels, data.num_classes) == ([0, 0, -20], ["open", 100, 40], 0, 3)
    assert data.mass_low == [0.25, 0.2, 0.0] and data.mass_high == [0.0, 0.2, 0.0]
    scale = x[x[:, 0] > 0, 0].mean()
    assert data.scale == [pytest.approx(max(scale, x[:, 0].max() / 8)), 1.0, 1.0]
    record = json.loads((tmp_path / "RUN/data.json").read_text())
    assert record["training"]["images"] == 180 and record["held_out"]["images"] == 20

    folder = tmp_path / "RUN/samples/iter_4"
    assert_weather(np.load(folder / "sample_0.npy"), data.scale[0], 0.05)
    assert is_picture(folder / "sample_0.png")
    draw = [*DRAW, "label=snow", "eval.batch_size=60"]
    run("run_vis.py", "load_dir=RUN", *draw, "hydra.run.dir=OUT")
    drawn = samples(tmp_path)
    assert_weather(drawn, data.scale[0], 0.05)
    assert is_picture(tmp_path / "OUT/images/samples_0.png")
    with np.load(tmp_path / "OUT/images/samples_0.npz") as arrays:
        assert arrays["labels"].tolist() == [2] * 60
    export(tmp_path / "RUN", tmp_path / "net.safetensors", "safetensors")
    run("run_vis.py", "load_dir=net.safetensors", *draw, "hydra.run.dir=EXPORTED")
    assert np.array_equal(samples(tmp_path, "EXPORTED"), drawn)


@pytest.mark.slow(25)
def test_a_killed_run_goes_on_as_if_it_had_not_been(train, run, tmp_path):
    write_table(tmp_path)
    often = [*WEATHER, "training.snapshot_freq_for_preemption=5", "training.snapshot_sampling=false"]
    command = [sys.executable, str(ROOT / "run_train.py"), *TINY, *often, "training.n_iters=100000"]
    with subprocess.Popen([*command, "hydra.run.dir=RUN"], cwd=tmp_path, env=environment(), stderr=-3) as process:
        wait_for_steps(tmp_path / "RUN", 12, process)
        process.kill()
    reached = read(tmp_path / "RUN/checkpoints-meta/checkpoint.pth")["step"]
    assert reached >= 5
    run("run_train.py", "resume=RUN", f"training.n_iters={reached + 3}")
    train(*often, f"training.n_iters={reached + 3}", "hydra.run.dir=WHOLE")
    assert_same(*(read(tmp_path / name / "checkpoints-meta/checkpoint.pth") for name in ("RUN", "WHOLE")))


@pytest.mark.slow(15)
def test_densities_are_those_in_the_units_of_the_table(run, train, tmp_path):
    """Nats per row: the density of the cube plus the Jacobian of every column, computed by hand."""
    x = write_table(tmp_path)
    train(*WEATHER)
    flow = ["metrics=[bpd]", "metrics.bpd.divergence=exact", "eval.images=5", "device=cpu"]
    flow += ["metrics.bpd.rtol=1e-6", "metrics.bpd.atol=1e-6"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x.csv").rename(tmp_path / "elsewhere/x.csv")
    run("run_eval.py", "load_dir=RUN", "data.root=elsewhere/x.csv", *flow, "hydra.run.dir=OUT")
    result = json.loads((tmp_path / "OUT/results.json").read_text())["metrics"]["bpd"]
    assert result["unit"] == "nats, minus the log density in units of the data"
    assert result["labels"] == "class of each image given" and result["dequantisation"].startswith("none")
    assert result["split"] == "test, 5 of 20 images"

    net, cfg = load_pretrained(tmp_path / "RUN")
    held_out, scale = x[9::10][:5], cfg.data.scale[0]
    u = np.stack([-np.expm1(-held_out[:, 0] / scale), held_out[:, 1] / 100, (held_out[:, 2] + 20) / 60], 1)
    labels = torch.arange(9, 50, 10) % 3
    out = log_likelihood(
        lambda z, sigma: net(z, sigma, labels), create_process(cfg.sde), torch.tensor(u, dtype=torch.float32),
        divergence="exact",
    )  # fmt: skip
    log_jacobian = -held_out[:, 0] / scale - math.log(scale) - math.log(100) - math.log(60)
    expected = -(out.log_prob.double().numpy() + log_jacobian)
    with np.load(tmp_path / "OUT/bpd.npz") as arrays:
        assert np.allclose(arrays["nats"], expected, atol=2e-3)
    assert result["value"] == pytest.approx(expected.mean(), abs=2e-3)
    data = load_configured(cfg.data, False, "datasets", str(tmp_path / "elsewhere/x.csv"))
    assert torch.allclose(data.units.log_jacobian(torch.tensor(u)), torch.tensor(log_jacobian), atol=1e-6)


@pytest.mark.slow(10)
def test_integers_are_drawn_as_integers_and_measured_in_bits(run, train, tmp_path):
    counts = np.random.default_rng(0).integers(-3, 8, (100, 4)).astype(np.int16)
    np.save(tmp_path / "x.npy", counts)
    np.save(tmp_path / "held_out.npy", counts[:7])
    train("data.root=x.npy", "data.held_out=held_out.npy", "data.low=-3", "data.high=9", *MLP)
    run("run_vis.py", "load_dir=RUN", *DRAW, "hydra.run.dir=OUT")
    for drawn in (samples(tmp_path), np.load(tmp_path / "RUN/samples/iter_2/sample_0.npy")):
        assert drawn.dtype == np.int64 and drawn.shape[1:] == (4,) and drawn.min() >= -3 and drawn.max() <= 9
    flow = ["metrics=[bpd]", "metrics.bpd.divergence=exact", "device=cpu"]
    run("run_eval.py", "load_dir=RUN", "data.root=x.npy", "data.held_out=held_out.npy", *flow, "hydra.run.dir=E")
    result = json.loads((tmp_path / "E/results.json").read_text())["metrics"]["bpd"]
    assert result["unit"] == "bits per dimension" and result["split"] == "test, 7 of 7 images"
    net, cfg = load_pretrained(tmp_path / "RUN")
    assert cfg.data.levels == 13 and min(cfg.data.mass_low) > 0 and cfg.data.mass_high == [0.0] * 4
    noise = image_generators(0, range(7), stream=Stream.DEQUANTIZE)
    u = torch.stack([torch.rand(4, generator=generator) for generator in noise])
    x = (torch.tensor(counts[:7] + 3) + u) / 13
    density = log_likelihood(net, create_process(cfg.sde), x, divergence="exact").log_prob.double()
    bits = math.log2(13) - density / (4 * math.log(2))
    assert result["value"] == pytest.approx(bits.mean().item(), abs=2e-3)


@pytest.mark.slow(10)
def test_data_that_moved_are_found_again_and_others_are_refused(run, train, script, tmp_path):
    write_table(tmp_path)
    write_table(tmp_path, "held_out.csv", 30)
    train(*WEATHER, "data.held_out=held_out.csv")
    (tmp_path / "new").mkdir()
    for name in ("x.csv", "held_out.csv"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    refused(script("run_train.py", "resume=RUN", "training.n_iters=3"), "data.root=x.csv does not exist")
    moved = ["data.root=new/x.csv", "data.held_out=new/held_out.csv"]
    run("run_train.py", "resume=RUN", "training.n_iters=3", *moved)
    assert [entry["step"] for entry in metrics(tmp_path / "RUN")] == [1, 2, 3]
    text = (tmp_path / "new/x.csv").read_text()
    (tmp_path / "new/x.csv").write_text(text.replace("0.0,", "0.5,", 1))
    before = contents(tmp_path)
    result = script("run_train.py", "resume=RUN", "training.n_iters=4", *moved)
    refused(result, "the 200 images to train on, or their classes, are others")
    (tmp_path / "new/x.csv").write_text(text.replace(",rain\n", ",snow\n", 1))
    refused(script("run_train.py", "resume=RUN", "training.n_iters=4", *moved), "or their classes, are others")
    (tmp_path / "new/x.csv").write_text(text.replace(",rain\n", ",fog\n", 1))
    result = script("run_train.py", "resume=RUN", "training.n_iters=4", *moved)
    refused(result, "new/x.csv: row 1 is of class fog, known are hail, rain, snow")
    (tmp_path / "new/x.csv").write_text(text.replace("0.0,", "0.5,", 1))
    assert contents(tmp_path) == before


@pytest.mark.slow(10)
def test_a_condition(run, train, script, tmp_path):
    write_table(tmp_path)
    train("data.root=x.csv", "data.columns=[cover]", "data.cond=[heat,rain]", "data.low=0", "data.high=100", *MLP)
    run("run_vis.py", "load_dir=RUN", "cond=[9,0.5]", *DRAW, "hydra.run.dir=OUT")
    with np.load(tmp_path / "OUT/images/samples_0.npz") as arrays:
        assert arrays["samples"].shape == (6, 1) and np.array_equal(arrays["cond"], [[9, 0.5]] * 6)
    flow = ["metrics=[bpd]", "metrics.bpd.rtol=1e-2", "metrics.bpd.atol=1e-2", "eval.images=5", "device=cpu"]
    run("run_eval.py", "load_dir=RUN", "data.root=x.csv", *flow, "hydra.run.dir=E")
    result = json.loads((tmp_path / "E/results.json").read_text())["metrics"]["bpd"]
    assert result["labels"] == "condition of each sample given" and result["unit"].startswith("nats")
    result = script("run_vis.py", "load_dir=RUN", "cond=[9]", *DRAW, "hydra.run.dir=REFUSED")
    refused(result, "cond")


@pytest.mark.slow(10)
@pytest.mark.parametrize(("simplex", "sde"), [("ordered", "reflected_simplex"), ("sticks", "reflected_ve")])
def test_compositions_sum_to_their_total_and_have_zeros(run, train, tmp_path, simplex, sde):
    parts = np.random.default_rng(0).dirichlet([1, 2, 3, 1], 100)
    parts[::3, 1] = 0
    np.save(tmp_path / "x.npy", 100 * parts / parts.sum(1, keepdims=True))
    chosen = [f"data.simplex={simplex}", f"sde={sde}", "data.high=100", "sde.sigma_min=0.03"]
    train("data.root=x.npy", *chosen, *MLP)
    run("run_vis.py", "load_dir=RUN", *DRAW, "eval.batch_size=60", "hydra.run.dir=OUT")
    drawn = samples(tmp_path)
    assert drawn.shape == (60, 4) and drawn.min() >= 0 and np.allclose(drawn.sum(1), 100, atol=1e-4)
    assert (drawn[:, 1] == 0).any() and not (drawn[:, [0, 2, 3]] == 0).any()
    assert is_picture(tmp_path / "OUT/images/samples_0.png")


VDM = ["model=vdm", "model.channels=8", "model.num_blocks=1"]
ADM = ["model=adm", "model.model_channels=8", "model.channel_mult=[1,1]", "model.num_blocks=1"]
ADM += ["model.attn_resolutions=[]"]


@pytest.mark.slow(10)
@pytest.mark.parametrize(
    ("shape", "network"),
    [((2, 12), VDM), ((2, 12), ADM), ((1, 4, 10), VDM), ((1, 4, 10), ADM), ((2, 4, 3, 5), VDM)],
    ids=["vdm1", "adm1", "vdm2", "adm2", "vdm3"],
)
def test_curves_fields_and_volumes(run, train, tmp_path, shape, network):
    x = np.random.default_rng(0).uniform(-5, 5, (40, *shape)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    train("data.root=x.npy", "data.low=-5", "data.high=5", *network)
    run("run_vis.py", "load_dir=RUN", *DRAW, "hydra.run.dir=OUT")
    kept = np.load(tmp_path / "RUN/samples/iter_2/sample_0.npy")
    for drawn, count in ((samples(tmp_path), 6), (kept, 20)):
        assert drawn.shape == (count, *shape) and drawn.dtype == np.float64
        assert -5 <= drawn.min() < -4 and 4 < drawn.max() <= 5
    for path in ("OUT/images/samples_0.png", "RUN/samples/iter_2/sample_0.png"):
        assert is_picture(tmp_path / path)


@pytest.fixture(scope="module")
def place(scripts, tmp_path_factory):
    """Make a folder with tables, arrays and a run, RUN."""
    folder = tmp_path_factory.mktemp("array")
    x = write_table(folder)
    np.save(folder / "x.npy", x)
    x[7, 1] = np.nan
    np.save(folder / "nan.npy", x)
    (folder / "folder").mkdir()
    np.savez(folder / "many.npz", a=x, b=x)
    result = scripts(folder, "run_train.py", *TINY, *WEATHER, "hydra.run.dir=RUN")
    assert result.returncode == 0, result.stderr
    return folder


WRONG = [
    ([], "data.root is missing: data=array needs a file .npy, .npz, .parquet or .csv"),
    (["data.root=gone.csv"], "data.root=gone.csv does not exist"),
    (["data.root=folder"], "data.root=folder"),
    (["data.root=nan.npy"], "nan.npy: row 7, column 1 is nan: need a number from 0.0 to 100.0; data.outside=drop"),
    (["data.root=x.npy", "data.high=50"], "x.npy: row"),
    (["data.root=x.npy", "data.low=[0,0]"], "data.low has 2 values, and the data 3 columns or channels"),
    (["data.root=x.npy", "data.low=zero"], "data.low=zero: need a number, open, or a list"),
    (["data.root=x.npy", "data.low=open", "data.high=open"], "data.low and data.high: both sides of channel 0 are"),
    (["data.root=x.npy", "data.low=200"], "data.low and data.high: low=200 of channel 0 is not less than high="),
    (["data.root=x.npy", "data.lows=0"], "data.lows: no such option; did you mean data.low?"),
    (["data.root=x.npy", "data.outside=ignore"], "data.outside=ignore: known are error, clip, drop"),
    (["data.root=x.npy", "data.shape=[4]"], "data.shape=[4]: the samples of x.npy have the shape [3]"),
    (["data.root=x.npy", "model=ddpmpp"], "model=ddpmpp is for square images, and the data have shape (3,)"),
    (["data.root=x.npy", "model=vdm"], "and the data have shape (3,)"),
    (["data.root=x.npy", "sde=ve"], "model.parametrization=kernel_faces is for a process reflected at 0 and 1"),
    (["data.root=x.npy", "sde=reflected_simplex"], "sde.name=reflected_simplex"),
    (["data.root=x.npy", "data.random_flip=true"], "data.random_flip=True: data.dataset=array has no images to mirror"),
    (["data.root=x.npy", "data.dequantize=true"], "data.dequantize=True: data.dataset=array has no grey levels"),
    (["data.root=x.npy", "data.classes=true"], "data.classes=True: say which column or array has them"),
    (["data.root=x.npy", "data.simplex=ordered", "sde=reflected_simplex"], "in a row that sums to"),
    (["data.root=x.csv"], "x.csv: column kind holds text, not numbers: name the columns"),
    (["data.root=x.csv", "data.columns=[rian]"], "x.csv has the columns rain, cover, heat, kind; did you mean rain?"),
    (["data.root=x.csv", "data.columns=[rain]", "data.labels=kinds"], "did you mean kind?"),
    (["data.root=many.npz"], "many.npz has the arrays a, b: call that of the data X"),
    (
        ["data.root=parts.npy", "data.simplex=ordered"],
        "data.simplex=ordered needs a process that keeps values in order",
    ),
    (["data.root=parts.npy", "data.simplex=sticks", "sde=reflected_simplex"], "reflected_simplex"),
]


@pytest.mark.parametrize(("typed", "message"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_wrong_options_and_files_are_one_line(place, scripts, typed, message):
    parts = np.random.default_rng(0).dirichlet([1, 2, 3, 1], 100)
    np.save(place / "parts.npy", parts)
    before = contents(place)
    model = [] if any(option.startswith("model=") for option in typed) else MLP
    refused(scripts(place, "run_train.py", *TINY, *model, *typed), message)
    assert contents(place) == before


DAMAGED = {
    "no low": ("low", "DELETE", "data.low is missing"),
    "null low": ("low", None, "data.low is missing"),
    "no high": ("high", "DELETE", "data.high is missing"),
    "low above high": ("low", [0, 100, -20], "low=100 of channel 1 is not less than high=100"),
    "both open": ("low", ["open", 0, -20], "both sides of channel 0 are open"),
    "low of two": ("low", [0, 0], "data.low has 2 values, and the data 3 columns or channels"),
    "5,000 low": ("low", [0] * 5000, "data.low has 5000 values, and the data 3 columns or channels"),
    "5,000 columns": ("shape", [5000], "data.low has 3 values, and the data 5000 columns or channels"),
    "no scale": ("scale", "DELETE", "data.scale is missing"),
    "scale of two": ("scale", [1.0, 2.0], "data.scale has 2 values, and the data 3 columns or channels"),
    "negative scale": ("scale", -1.0, "data.scale=-1.0: need a positive number"),
    "text for levels": ("levels", "many", "data.levels=many: need an integer"),
    "other levels": ("levels", 7, "data.levels=7: data.low and data.high are not those of so many integers"),
    "mass of two": ("mass_low", [0.1, 0.1], "data.mass_low has 2 values"),
    "another shape": ("shape", [4], "data.low has 3 values, and the data 4 columns or channels"),
    "a shape of text": ("shape", "three", "data.shape=three: need a list"),
    "no shape": ("shape", None, "data.shape"),
    "another simplex": ("simplex", "triangle", "data.simplex=triangle"),
    "a simplex": ("simplex", "ordered", "data.low has 3 values, and the data 4 columns or channels"),
    "cond": ("cond_size", 3, "data.cond_size=3 and data.classes=True"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_run_with_a_changed_configuration_ends_in_one_line(place, scripts, case):
    key, value, message = DAMAGED[case]
    bad = place / "bad"
    shutil.copytree(place / "RUN", bad)
    try:
        path = bad / ".hydra/config.yaml"
        cfg = yaml.safe_load(path.read_text())
        if value == "DELETE":
            del cfg["data"][key]
        else:
            cfg["data"][key] = value
        path.write_text(yaml.safe_dump(cfg))
        before = contents(place)
        result = scripts(place, "run_vis.py", "load_dir=bad", *DRAW)
        refused(result, message)
        assert "config.yaml" in result.stderr
        assert contents(place) == before
    finally:
        shutil.rmtree(bad)


@pytest.mark.slow(15)
def test_thousands_of_columns(place, scripts):
    """They share their bounds, and their names are left in the table: the configuration of a run stays short."""
    x = np.random.default_rng(0).uniform(size=(30, 5000))
    with (place / "wide.csv").open("w") as file:
        np.savetxt(file, x, delimiter=",", header=",".join(f"gene{i}" for i in range(5000)), comments="")
    chosen = ["data.root=wide.csv", *MLP, "hydra.run.dir=WIDE", "training.snapshot_sampling=false"]
    draw = ["load_dir=WIDE", *DRAW, "hydra.run.dir=WIDE_OUT"]
    for command in (["run_train.py", *TINY, *chosen], ["run_vis.py", *draw]):
        result = scripts(place, *command)
        assert result.returncode == 0, result.stderr
    assert len((place / "WIDE/.hydra/config.yaml").read_text()) < 10_000
    drawn = samples(place, "WIDE_OUT")
    assert drawn.shape == (6, 5000) and x.min() - 1e-4 < drawn.min() < 0.01 and 0.99 < drawn.max() < x.max() + 1e-4
    bounds = f"data.low=[{','.join(['0'] * 5000)}]"
    message = "data.low: more than 1000 columns or channels share one value"
    refused(scripts(place, "run_train.py", *TINY, *MLP, "data.root=wide.csv", bounds), message)


@pytest.mark.slow(10)
def test_a_sweep_over_seeds(run, tmp_path):
    write_table(tmp_path)
    run("run_train.py", "-m", *TINY, *WEATHER, "seed=0,1", "hydra.sweep.dir=SWEEP", "training.snapshot_sampling=false")
    losses = [metrics(tmp_path / f"SWEEP/{job}")[-1]["loss"] for job in (0, 1)]
    assert losses[0] != losses[1]


def test_the_summary_has_the_columns_and_a_figure(train, tmp_path):
    write_table(tmp_path)
    result = train(*WEATHER, "training.n_iters=0")
    said = result.stdout + result.stderr
    assert "180 samples to train on, 20 held out, each 3" in said and "class 1: rain, 60 samples" in said
    assert "coordinate cover: 0 to 100" in said
    assert is_picture(tmp_path / "RUN/data.png")

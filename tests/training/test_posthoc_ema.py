"""Power-function averages: their profile, snapshots, exact resuming, and reconstruction in other lengths."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.integrate import quad
from torch import nn

import training.metric_writer
from models import load_pretrained
from models.export import export
from models.io import ema_snapshots
from models.io.ema_snapshots import KEY, encode_snapshot, read_info, reconstruct, snapshot_path, snapshot_steps
from models.io.safetensors import digest
from models.posthoc_ema import coefficients, gamma_of, inner_products
from tests.conftest import ROOT, assert_same, read, tiny_config
from training.checkpoint import Checkpoints
from training.ema import PowerEMA
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError
from utils.old_keys import update_old_keys

CPU = Distributed(torch.device("cpu"))
QUICK = ["training.snapshot_sampling=false", "logger=none", "optim.warmup=0", "training.n_iters=6"]
TRACKED = ["training.ema_snapshot_freq=2", "training.snapshot_freq=3"]
LENGTHS = (0.05, 0.1)


@pytest.fixture(autouse=True)
def no_picture_of_losses(monkeypatch):
    """Plotting takes longer than the steps of these runs."""
    monkeypatch.setattr(training.metric_writer, "draw_losses", lambda *_: None)


def trained(run_dir, *overrides):
    train(tiny_config(*QUICK, *overrides), run_dir, CPU)
    return run_dir


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run of six steps with snapshots at 2, 3, 4 and 6, and checkpoints at 3 and 6."""
    return trained(tmp_path_factory.mktemp("tracked") / "run", *TRACKED)


@pytest.fixture
def run(original, tmp_path):
    """A copy of ``original`` to change."""
    return shutil.copytree(original, tmp_path / "run")


class Weights(nn.Module):
    """A model whose network has one parameter, of zeros."""

    def __init__(self, size):
        super().__init__()
        self.network = nn.Module()
        self.network.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def exact_average(sequence, length):
    """Sum the weights of steps 1 .. T, (T, n) in float64, by the integral of the profile over each step."""
    edges = (np.arange(len(sequence) + 1) / len(sequence)) ** (gamma_of(length) + 1)
    return np.diff(edges) @ sequence


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_length_is_the_standard_deviation_of_the_profile(length):
    gamma = gamma_of(length)
    mean, square = (quad(lambda s, k=k: s**k * (gamma + 1) * s**gamma, 0, 1, epsabs=1e-12)[0] for k in (1, 2))
    assert np.sqrt(square - mean**2) == pytest.approx(length, rel=1e-6)


def test_lengths_outside_the_range_have_no_profile():
    assert gamma_of(12**-0.5) == pytest.approx(0, abs=1e-6)
    for length in (0, -0.1, 0.29, float("nan")):
        with pytest.raises(ValueError, match="is not in"):
            gamma_of(length)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.25])
def test_the_tracked_average_is_the_sum_over_the_profile(length):
    model, steps = Weights(1), 300
    ema = PowerEMA(model, [length])
    for step in range(1, steps + 1):
        nn.init.constant_(model.network.w, step)
        ema.update(step)
    gamma = gamma_of(length)
    found = ema.averages[length]["w"].item()
    s = np.arange(1, steps + 1) / steps
    assert found == pytest.approx(np.sum((s ** (gamma + 1) - (s - 1 / steps) ** (gamma + 1)) * s * steps), rel=1e-12)
    # the mean of the continuous profile is (gamma + 1) / (gamma + 2) of the steps, and a step is half a step late
    assert found == pytest.approx(steps * (gamma + 1) / (gamma + 2) + 0.5, abs=0.02)


def test_averages_of_a_long_run_move():
    """At step 1,300,000 an update moves the average by 1e-8, a tenth of the last digit of float32."""
    model = Weights(1)
    model.network.w.data = torch.ones(1)
    ema = PowerEMA(model, [0.05])
    model.network.w.data += 2**-10
    for step in range(1_300_000, 1_301_000):
        ema.update(step + 1)
    moved = 2**-10 * (1 - (1300 / 1301) ** (gamma_of(0.05) + 1))
    assert ema.averages[0.05]["w"].item() - 1 == pytest.approx(moved, rel=1e-6)


def test_inner_products_are_the_integrals():
    gammas, steps = np.array([6.9, 17.0, 0.3]), np.array([1.0, 0.7, 0.05])
    found = inner_products(gammas, steps, gammas, steps)
    for i, (a, b) in enumerate(zip(gammas, steps, strict=True)):
        for j, (c, d) in enumerate(zip(gammas, steps, strict=True)):
            expected, _ = quad(
                lambda s, a=a, b=b, c=c, d=d: (a + 1) * s**a / b ** (a + 1) * (c + 1) * s**c / d ** (c + 1),
                0,
                min(b, d),
            )
            assert found[i, j] == pytest.approx(expected, rel=1e-6)


def test_coefficients_stay_small_where_snapshots_are_close():
    """Two snapshots that are one step of 1,300,001 apart have almost one profile."""
    steps = [*range(50_000, 1_300_001, 50_000), 1_300_001]
    stored = [(length, step) for step in steps for length in LENGTHS]
    for length, distance in ((0.03, 0.02), (0.07, 2e-3), (0.15, 5e-3), (0.2, 0.01)):
        found, apart = coefficients(stored, length, 1_300_001)
        assert found.sum() == pytest.approx(1, abs=1e-9) and np.linalg.norm(found) < 5 and apart < distance
    found, apart = coefficients(stored, 0.05, 1_300_001)
    assert apart == 0 and found[-2] == 1 and np.count_nonzero(found) == 1


def walk_with_snapshots(folder, steps, freq):
    """Average 400 random walks, and write snapshots; return the walks and the metadata of the snapshots."""
    generator = np.random.default_rng(0)
    sequence = 1 + generator.standard_normal((steps, 400)).cumsum(0) / np.sqrt(steps)
    model, infos = Weights(400), []
    ema = PowerEMA(model, LENGTHS)
    (folder / "ema").mkdir()
    for step in range(1, steps + 1):
        model.network.w.data.copy_(torch.from_numpy(sequence[step - 1]))
        ema.update(step)
        if step % freq == 0:
            encoded, info = encode_snapshot(step, ema.averages, {"w": model.network.w})
            snapshot_path(folder, step).write_bytes(encoded)
            infos.append(info)
            assert read_info(snapshot_path(folder, step)) == info
    return sequence, ema, infos


def test_averages_of_random_walks_are_reconstructed(tmp_path):
    """The error is a share of the root mean square of the average minus the last weights, which is about the length."""
    sequence, ema, infos = walk_with_snapshots(tmp_path, 1000, 20)
    shapes = {"w": torch.zeros(400, dtype=torch.float64)}
    for length in LENGTHS:
        found = reconstruct(tmp_path, infos, length, shapes)["w"]
        assert torch.equal(found, ema.averages[length]["w"].half().double())
        assert abs(found.numpy() - exact_average(sequence, length)).max() < 2e-3  # rounding of values up to 4
    for length, bound in ((0.03, 0.02), (0.07, 3e-3), (0.15, 1e-3), (0.2, 1e-3), (0.25, 6e-3)):
        expected = exact_average(sequence, length)
        error = reconstruct(tmp_path, infos, length, shapes)["w"].numpy() - expected
        apart = np.sqrt(np.mean((expected - sequence[-1]) ** 2))
        assert np.sqrt(np.mean(error**2)) < bound * apart, length


def test_constant_weights_are_reconstructed_as_they_are(tmp_path):
    (tmp_path / "ema").mkdir()
    infos = []
    for step in (10, 20, 25):
        encoded, info = encode_snapshot(step, {length: {"w": torch.full((3,), 0.75)} for length in LENGTHS}, {})
        snapshot_path(tmp_path, step).write_bytes(encoded)
        infos.append(info)
    for length in (0.01, 0.07, 0.28):
        found = reconstruct(tmp_path, infos, length, {"w": torch.zeros(3)})["w"]
        assert torch.allclose(found, torch.full((3,), 0.75, dtype=torch.float64), atol=1e-5)


def test_values_beyond_float16_are_kept(tmp_path):
    large = torch.tensor([1e5, 1.0])
    encoded, info = encode_snapshot(1, {0.05: {"w": large, "v": torch.ones(2)}}, {"w": large})
    (tmp_path / "ema").mkdir()
    snapshot_path(tmp_path, 1).write_bytes(encoded)
    stored = load_file(snapshot_path(tmp_path, 1))
    assert torch.equal(stored["0.05/w"], large) and stored["0.05/v"].dtype == torch.float16
    assert torch.equal(reconstruct(tmp_path, [info], 0.05, {"w": large, "v": large})["w"], large.double())


def test_tracking_changes_nothing_else(original, tmp_path):
    plain = trained(tmp_path, "training.snapshot_freq=3")
    assert not (plain / "ema").exists() and "power_ema" not in read(plain / "checkpoints/checkpoint_2.pth")
    with_averages = read(original / "checkpoints/checkpoint_2.pth")
    del with_averages["power_ema"]
    assert_same(with_averages, read(plain / "checkpoints/checkpoint_2.pth"))


def test_snapshots_are_the_averages_in_the_checkpoint(original):
    assert snapshot_steps(original) == [2, 3, 4, 6]
    for number in (1, 2):
        checkpoint = read(original / f"checkpoints/checkpoint_{number}.pth")
        assert checkpoint["power_ema"]["lengths"] == list(LENGTHS)
        for length, averages in zip(LENGTHS, checkpoint["power_ema"]["averages"], strict=True):
            net, _ = load_pretrained(original, number, ema=length)
            for p, average in zip(net.parameters(), averages, strict=True):
                assert torch.equal(p, average.half().float())
    size = sum(p.numel() for p in net.parameters())
    assert 4 * size < snapshot_path(original, 6).stat().st_size < 4 * size + 20_000


def test_other_lengths_and_raw_weights_are_loaded(original):
    raw = read(original / "checkpoints/checkpoint_2.pth")["model"]
    net, _ = load_pretrained(original, weights="model")
    assert all(torch.equal(tensor, raw[name]) for name, tensor in net.network.state_dict().items())
    first = [next(load_pretrained(original, ema=length)[0].parameters()) for length in (None, 0.05, 0.07, 0.1, 0.2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])
    # 0.07 lies between: its distances add up to that of the two stored averages, up to the other snapshots' part
    apart = (first[1] - first[3]).norm()
    assert (first[1] - first[2]).norm() < apart and (first[2] - first[3]).norm() < apart


def files(run):
    return {path.relative_to(run): path.read_bytes() for path in (run / "ema").rglob("*") if path.is_file()}


def test_a_killed_run_writes_the_same_snapshots(original, tmp_path, monkeypatch):
    """The run is killed after the snapshot of step 4 and goes on from the checkpoint of step 3."""

    class Killed(BaseException):
        pass

    save = Checkpoints.save_averages

    def kill(self, state):
        save(self, state)
        if state.step == 4:
            (self.run_dir / "ema/.step_6.safetensors.1.tmp").write_bytes(b"half of it")
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_averages", kill)
        with pytest.raises(Killed):
            trained(tmp_path, *TRACKED)
    assert snapshot_steps(tmp_path) == [2, 3, 4]
    assert read(tmp_path / "checkpoints-meta/checkpoint.pth")["step"] == 3
    trained(tmp_path, *TRACKED)
    assert files(tmp_path) == files(original)
    assert_same(*(read(folder / "checkpoints-meta/checkpoint.pth") for folder in (tmp_path, original)))


def test_snapshots_of_another_course_are_set_aside(run, caplog):
    """The run goes back to step 3, and on with another learning rate, or with snapshots at other steps."""
    before = files(run)
    shutil.copy(run / "checkpoints/checkpoint_1.pth", run / "checkpoints-meta/checkpoint.pth")
    trained(run, *TRACKED, "optim.lr=0.1")
    after = files(run)
    stale = {path.parent / "before_4" / path.name: before[path] for path in before if path.name[5] in "46"}
    assert len(stale) == 2 and stale.items() <= after.items() and len(after) == 6
    assert "from step 4 on are of other weights" in caplog.text
    assert all(after[path] == before[path] for path in before if path.name[5] in "23")
    load_pretrained(run, 3, ema=0.07)
    with pytest.raises(InputError, match=r"ema/step_6\.safetensors is of other weights than .*checkpoint_2\.pth"):
        load_pretrained(run, 2, ema=0.07)
    shutil.copy(run / "checkpoints/checkpoint_1.pth", run / "checkpoints-meta/checkpoint.pth")
    trained(run, *TRACKED, "optim.lr=0.1", "training.ema_snapshot_freq=5")
    assert snapshot_steps(run) == [2, 3, 5, 6] and snapshot_steps(run / "ema") == []
    assert {path.name for path in (run / "ema/before_5").iterdir()} == {"step_4.safetensors", "step_6.safetensors"}


def test_averages_begin_with_the_run(run, tmp_path):
    with pytest.raises(
        InputError, match=r"training\.ema_lengths=\[0\.07\], but the run has averages of \[0\.05, 0\.1\]"
    ):
        trained(run, *TRACKED, "training.n_iters=8", "training.ema_lengths=[0.07]")
    plain = trained(tmp_path / "plain", "training.snapshot_freq=3")
    with pytest.raises(InputError, match=r"training\.ema_snapshot_freq: it has no power-function averages"):
        trained(plain, *TRACKED, "training.n_iters=8")
    for override in ("ema_lengths=[0.05,0.05]", "ema_lengths=[0.3]", "ema_lengths=[]", "ema_snapshot_freq=0"):
        with pytest.raises(InputError, match=rf"training\.{override.split('=')[0]}"):
            trained(tmp_path / "new", f"training.{override}")


def rewrite(path, change):
    """Change the tensors and the metadata of a snapshot; the checksum fits again unless it is changed."""
    with safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()[KEY])
    tensors = load_file(path)
    change(tensors, info)
    if "sha256" in info and info["sha256"] != "another":
        info["sha256"] = digest("", tensors)
    save_file(tensors, path, metadata={KEY: json.dumps(info)})


W = "0.05/conv_in.weight"
DAMAGE = {
    "no tensor": (lambda t, _: t.pop(W), "has no 0.05/conv_in.weight"),
    "one more": (lambda t, _: t.update(extra=torch.ones(1)), "has extra, which the network"),
    "of another shape": (lambda t, _: t.update({W: torch.ones(2)}), "conv_in.weight is (2,), the network wants"),
    "of another type": (lambda t, _: t.update({W: t[W].int()}), "conv_in.weight is of type int32"),
    "not finite": (lambda t, _: t[W].fill_(torch.inf), "conv_in.weight holds values that are not finite"),
    "other checksum": (lambda _, info: info.update(sha256="another"), "is damaged: its checksum is another"),
    "other step": (lambda _, info: info.update(step=5), "of the step in its name"),
    "no step": (lambda _, info: info.pop("step"), "its metadata are not those of one"),
    "no lengths": (lambda _, info: info.update(lengths=[]), "their lengths are not those of averages"),
    "length out of range": (lambda _, info: info.update(lengths=[0.05, 7.0]), "their lengths are not those"),
    "nested length": (lambda _, info: info.update(lengths=[[0.05]]), "their lengths are not those"),
    "other weights": (lambda _, info: info.update(model_sha256="0"), "is of other weights than"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_snapshot_is_named(run, case):
    change, message = DAMAGE[case]
    rewrite(snapshot_path(run, 6), change)
    with pytest.raises(InputError) as caught:
        load_pretrained(run, ema=0.07)
    assert "ema/step_6.safetensors" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_snapshots_are_named(run, monkeypatch):
    path = snapshot_path(run, 4)
    for contents in (b"", b"junk", path.read_bytes()[:-8], (2**40).to_bytes(8, "little") + b"{}"):
        path.write_bytes(contents)
        with pytest.raises(InputError, match=r"ema/step_4\.safetensors cannot be read"):
            load_pretrained(run, ema=0.07)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"ema/step_4\.safetensors is not a snapshot of EMA weights"):
        load_pretrained(run, ema=0.07)
    (run / "ema/notes.txt").write_text("stray")
    path.unlink()
    assert load_pretrained(run, ema=0.07)
    monkeypatch.setattr(ema_snapshots, "MAX_SNAPSHOTS", 2)
    with pytest.raises(InputError, match="ema has 3 snapshots up to step 6, more than 2"):
        load_pretrained(run, ema=0.07)


def test_averages_that_cannot_be_had_are_refused(run, tmp_path):
    reference = tmp_path / "reference"
    shutil.copytree(ROOT / "tests/golden/reference_run", reference)
    with pytest.raises(
        InputError, match=r"reference/ema has no snapshots: eval\.ema needs a run trained with training"
    ):
        load_pretrained(reference, ema=0.05)
    averaged, raw = (load_pretrained(reference, weights=name)[0].parameters() for name in ("ema", "model"))
    assert any(not torch.equal(a, b) for a, b in zip(averaged, raw, strict=True))
    for ema in (0.3, 0, 0.005, float("nan"), "long"):
        with pytest.raises(InputError, match=rf"eval\.ema={ema}: need a number, at least 0\.01, at most 0\.28"):
            load_pretrained(run, ema=ema)
    with pytest.raises(InputError, match=r"eval\.weights=raw: known are ema, model"):
        load_pretrained(run, weights="raw")
    with pytest.raises(InputError, match=r"eval\.ema=0\.05 is an average, and eval\.weights=model is not"):
        load_pretrained(run, ema=0.05, weights="model")
    snapshot_path(run, 6).unlink()
    with pytest.raises(InputError, match=r"ema has no snapshot of the step of .*checkpoint_2\.pth, 6"):
        load_pretrained(run, ema=0.05)


def test_an_export_has_the_average_asked_for(original, tmp_path):
    expected = next(load_pretrained(original, ema=0.07)[0].parameters())
    for out, layout in (("out.safetensors", "safetensors"), ("out", "published")):
        export(original, tmp_path / out, layout, ema=0.07)
        assert torch.equal(next(load_pretrained(tmp_path / out)[0].parameters()), expected)
    raw = load_pretrained(original, weights="model")[0].parameters()
    assert torch.equal(next(load_pretrained(tmp_path / "out", weights="model")[0].parameters()), next(raw))
    path = tmp_path / "out.safetensors"
    for options, key in (({"ema": 0.07}, r"eval\.ema=0\.07"), ({"weights": "model"}, r"eval\.weights=model")):
        with pytest.raises(InputError, match=rf"out\.safetensors has only the averages .*: {key} needs the run"):
            load_pretrained(path, **options)


def test_the_scripts_take_the_weights_asked_for(run, script, tmp_path):
    draw = ["load_dir=run", "device=cpu", "eval.batch_size=2", "sampling.method=multistep", "sampling.steps=2"]
    drawn = {}
    for name, option in (("ema", "eval.ema=null"), ("model", "eval.weights=model"), ("long", "eval.ema=0.2")):
        result = script("run_vis.py", *draw, option, f"hydra.run.dir={name}")
        assert result.returncode == 0, result.stderr
        drawn[name] = np.load(tmp_path / name / "images/samples_0.npz")["samples"]
    assert (drawn["ema"] != drawn["model"]).any() and (drawn["ema"] != drawn["long"]).any()
    measure = ["load_dir=run", "device=cpu", "metrics=[elbo]", "metrics.elbo.num_times=2", "eval.images=2"]
    result = script("run_eval.py", *measure, "eval.ema=0.07", "hydra.run.dir=measured")
    assert result.returncode == 0, result.stderr
    assert "EMA of relative length 0.07 at step 6 from 4 snapshots" in result.stderr
    found = json.loads((tmp_path / "measured/results.json").read_text())["checkpoint"]
    assert found["weights"] == "power-function average of relative length 0.07" and len(found["snapshots_sha256"]) == 64
    for options, line in (
        (["eval.ema=0.5"], "eval.ema=0.5: need a number, at least 0.01, at most 0.28, or null"),
        (
            ["eval.ema=0.05", "eval.weights=model"],
            "eval.ema=0.05 is an average, and eval.weights=model is not: leave one",
        ),
    ):
        refused = script("run_vis.py", *draw, *options)
        assert refused.returncode == 1 and refused.stderr.startswith(line) and refused.stderr.count("\n") == 1
    shutil.rmtree(run / "ema")
    refused = script("run_eval.py", *measure, "eval.ema=0.07")
    assert refused.returncode == 1 and "run/ema has no snapshots" in refused.stderr.splitlines()[-1], refused.stderr


def test_configurations_of_earlier_evaluations_get_the_weights_they_used():
    assert update_old_keys({"eval": {"ckpt": 1}})["eval"] == {"ckpt": 1, "weights": "ema"}
    assert update_old_keys({"eval": {"batch_size": 1}})["eval"] == {"batch_size": 1}

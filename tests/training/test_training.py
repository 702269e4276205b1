"""The loop, its state and its files, in this process."""

import itertools
import math
import os

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from datasets import load_images
from losses import DiffusionSquared
from models import load_pretrained
from models.io.config import load_config
from models.io.run_files import find_checkpoint
from tests.conftest import assert_same, composed, metrics, read, tiny_config
from training import checkpoint
from training.ema import EMA
from training.loop import create_state, drop_labels, train
from training.options import check_train
from training.run_dir import resumed_config
from utils.distributed import Distributed
from utils.errors import InputError, TrainingError
from utils.seeds import Stream, derived_seed

CPU = Distributed(torch.device("cpu"))


def rewrite(path, change):
    contents = read(path)
    change(contents)
    torch.save(contents, path)


def test_ema_is_the_published_average():
    net = nn.Linear(3, 2)
    ema = EMA(net, 0.3)
    expected = net.weight.detach().clone()
    for n in range(1, 30):
        nn.init.normal_(net.weight)
        ema.update(net)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    assert torch.allclose(ema.model.weight, expected, atol=1e-6)
    assert ema.num_updates == 29 and not ema.model.weight.requires_grad
    assert torch.equal(ema.shadow_params[0], ema.model.weight)


def test_every_purpose_and_step_has_its_own_seed():
    seeds = {derived_seed(seed, stream, step) for seed in range(3) for stream in Stream for step in range(100)}
    assert len(seeds) == 3 * len(Stream) * 100
    assert derived_seed(7, Stream.TRAIN, 5) == derived_seed(7, Stream.TRAIN, 5)


def test_labels_are_dropped_image_by_image():
    torch.manual_seed(0)
    labels = torch.arange(10).repeat(2000)
    dropped = drop_labels(labels, 0.2)
    null = dropped == -1
    assert torch.equal(dropped[~null], labels[~null])
    assert abs(null.float().mean().item() - 0.2) < 4 * math.sqrt(0.16 / 20_000)
    assert torch.equal(drop_labels(labels, 0.0), labels)


def test_a_run_writes_its_files(tmp_path):
    cfg = tiny_config("training.n_iters=5", "training.snapshot_freq=2")
    train(cfg, tmp_path, CPU)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"checkpoint_{n}.pth" for n in (1, 2, 3)]
    assert [read(tmp_path / f"checkpoints/checkpoint_{n}.pth")["step"] for n in (1, 2, 3)] == [2, 4, 5]
    assert sorted(os.listdir(tmp_path / "checkpoints-meta")) == ["checkpoint.pth", "checkpoint_previous.pth"]
    assert read(tmp_path / "checkpoints-meta/checkpoint_previous.pth")["step"] == 4
    state = read(tmp_path / "checkpoints-meta/checkpoint.pth")
    assert set(state) == {"model", "ema", "optimizer", "step", "images", "scaler"} and state["images"] == 5 * 8
    assert set(state["ema"]) == {"decay", "num_updates", "shadow_params"}
    assert state["ema"]["num_updates"] == state["step"] == 5
    samples = np.load(tmp_path / "samples/iter_5/sample_0.npy")
    assert samples.shape == (20, 8, 8, 1) and samples.dtype == np.uint8 and samples.std() > 10
    assert (tmp_path / "samples/iter_5/sample_0.png").stat().st_size > 1000
    assert load_config(tmp_path) == cfg

    entries = metrics(tmp_path)
    assert [e["step"] for e in entries] == [1, 2, 3, 4, 5]
    assert ["eval_loss" in e for e in entries] == [False, True, False, True, True]
    assert all(e["loss"] > 0 and e["images_per_sec"] > 0 for e in entries)
    warm = [cfg.optim.lr * n / cfg.optim.warmup for n in (1, 2, 3, 4, 5)]
    assert [e["lr"] for e in entries] == pytest.approx(warm)


def test_the_same_seed_repeats_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_config(f"seed={seed}"), tmp_path / name, CPU)
    a, b, c = (read(tmp_path / name / "checkpoints/checkpoint_1.pth") for name in "abc")
    assert_same(a, b)
    assert not torch.equal(a["ema"]["shadow_params"][0], c["ema"]["shadow_params"][0])
    losses = [[e["eval_loss"] for e in metrics(tmp_path / name) if "eval_loss" in e] for name in "abc"]
    assert losses[0] == losses[1] != losses[2]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    options = ["model.dropout=0.1", "data.random_flip=true"]
    train(tiny_config("training.n_iters=6", *options), tmp_path / "whole", CPU)
    train(tiny_config("training.n_iters=3", *options), tmp_path / "parts", CPU)
    # What a kill leaves: steps to redo, half a line.
    with open(tmp_path / "parts/metrics.jsonl", "a", errors="surrogateescape") as file:
        file.write('5\nnull\n[1]\n\udcff\n{"step": 4, "loss": 123.0}\n{"step": 5, "lo')
    stale = tmp_path / "parts/checkpoints-meta/.checkpoint.pth.12345.tmp"
    stale.write_bytes(b"half of a checkpoint")
    train(tiny_config("training.n_iters=6", *options), tmp_path / "parts", CPU)
    assert_same(*(read(tmp_path / name / "checkpoints-meta/checkpoint.pth") for name in ("whole", "parts")))
    whole, parts = (metrics(tmp_path / name) for name in ("whole", "parts"))
    assert [e["step"] for e in parts] == [1, 2, 3, 4, 5, 6]
    assert [e["loss"] for e in parts] == [e["loss"] for e in whole]
    assert not stale.exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_resumes_exactly(tmp_path, precision):
    for name, steps in (("whole", [12]), ("parts", [8, 12]), ("full", [12])):
        for n in steps:
            chosen = "fp32" if name == "full" else precision
            options = [f"training.n_iters={n}", f"precision={chosen}", "training.snapshot_sampling=false"]
            train(tiny_config(*options), tmp_path / name, CPU)
    whole, parts, full = (
        read(tmp_path / name / "checkpoints-meta/checkpoint.pth") for name in ("whole", "parts", "full")
    )
    assert_same(whole, parts)
    assert full["scaler"] is None
    if precision == "bf16":
        assert whole["scaler"] is None
    else:
        assert whole["scaler"]["scale"] < 65536.0 and whole["scaler"]["_growth_tracker"] > 4
    assert all(tensor.dtype == torch.float32 for tensor in whole["model"].values())
    losses = [metrics(tmp_path / name)[-1]["loss"] for name in ("whole", "full")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert any(not torch.equal(tensor, full["model"][name]) for name, tensor in whole["model"].items())


def test_steps_that_overflow_in_fp16_are_skipped_and_lower_the_scale(tmp_path):
    """The first scale, 65536, is too large for this network: the first steps overflow."""
    options = ["training.n_iters=10", "training.snapshot_freq=1", "training.snapshot_sampling=false"]
    train(tiny_config(*options, "precision=fp16"), tmp_path, CPU)
    states = [read(tmp_path / f"checkpoints/checkpoint_{n}.pth") for n in range(1, 11)]
    scales = [65536.0, *(state["scaler"]["scale"] for state in states)]
    skipped = [now == before / 2 for before, now in itertools.pairwise(scales)]
    assert skipped[0] and not skipped[-1]
    weights = [state["model"]["conv_out.bias"] for state in states]
    moved = [not torch.equal(before, now) for before, now in itertools.pairwise(weights)]
    assert moved == [not skip for skip in skipped[1:]]
    assert [entry["grad_norm"] == 0 for entry in metrics(tmp_path)] == skipped


def test_resume_uses_the_configuration_of_the_run(tmp_path):
    train(tiny_config("optim.lr=0.5"), tmp_path, CPU)
    saved = tmp_path / ".hydra/config.yaml"
    saved.write_text(saved.read_text().replace("precision: fp32\n", ""))  # a run older than that option
    command_line = ["training.n_iters=7"]
    cfg = resumed_config(tiny_config(*command_line), tmp_path, command_line)
    assert (cfg.optim.lr, cfg.training.n_iters, cfg.data.dataset) == (0.5, 7, "digits")
    assert cfg.precision == "fp32" and cfg.model == load_config(tmp_path).model


@pytest.mark.parametrize(
    ("override", "message"),
    [("~training.log_freq", "~training.log_freq: .* cannot lose"), ("experiment=digits", "experiment cannot change")],
)
def test_a_resumed_run_keeps_its_keys_and_its_experiment(tmp_path, override, message):
    train(tiny_config(), tmp_path, CPU)
    with pytest.raises(InputError, match=message):
        resumed_config(tiny_config(), tmp_path, [override])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["ema"]["shadow_params"].__setitem__(0, torch.ones(1)), r"embed1\.weight is \(1,\)"),
        (lambda c: c["ema"]["shadow_params"].pop(), "EMA tensors"),
        (lambda c: c["model"].pop("conv_in.weight"), "conv_in.weight"),
        (lambda c: c.pop("step"), "step"),
    ],
)
def test_a_damaged_state_is_not_resumed_from(tmp_path, change, message):
    train(tiny_config(), tmp_path, CPU)
    rewrite(tmp_path / "checkpoints-meta/checkpoint.pth", change)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=rf"checkpoints-meta/checkpoint\.pth does not fit this run: .*{message}"):
        train(tiny_config("training.n_iters=3"), tmp_path, CPU)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("override", ["sde.sigma_min=0.02", "model.dropout=0.3", "data.random_flip=true", "seed=5"])
def test_another_run_in_the_same_directory_is_refused_and_changes_nothing(tmp_path, override):
    train(tiny_config(), tmp_path, CPU)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=override.split("=")[0].replace(".", r"\.")):
        train(tiny_config("training.n_iters=3", override), tmp_path, CPU)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_arguments_of_the_loss_in_training_and_evaluation(tmp_path, monkeypatch):
    """Training: weights, training images, dropped labels. Evaluation: EMA weights, held-out images, all labels."""
    import training.loop
    import training.snapshots

    calls, clips, drawn = [], [], []
    honest_loss, honest_clip = training.loop.score_error, nn.utils.clip_grad_norm_
    honest_draw = training.snapshots.draw_samples

    def loss(net, sde, x0, t, x, labels, target, **options):
        calls.append((net.training, next(net.parameters()).requires_grad, x0, labels, sde, options))
        return honest_loss(net, sde, x0, t, x, labels, target, **options)

    monkeypatch.setattr(training.loop, "score_error", loss)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda p, m: clips.append(m) or honest_clip(p, m))
    monkeypatch.setattr(
        training.snapshots,
        "draw_samples",
        lambda net, *rest, **more: drawn.append(net) or honest_draw(net, *rest, **more),
    )
    overrides = ["training.batch_size=100", "eval.batch_size=100", "optim.grad_clip=0.7", "training.reduce_mean=true"]
    cfg = tiny_config(*overrides, "training.likelihood_weighting=true", "sde.sigma_min=0.02", "data.random_flip=true")
    train(cfg, tmp_path, CPU)

    splits = [load_images("digits", part, image_size=8, num_channels=1, num_classes=10) for part in (True, False)]
    known = [{bytes(image.flatten().tolist()) for image in split.data} for split in splits]
    (*steps, evaluation) = calls
    assert len(steps) == 2
    for in_training, learning, x0, labels, sde, options in steps:
        pixels = (x0 * 16).round().to(torch.uint8)
        shares = [
            np.mean([bytes(image.flatten().tolist()) in known[0] for image in version])
            for version in (pixels, pixels.flip(-1))
        ]
        assert 0.3 < shares[0] < 0.7 and 0.3 < shares[1] < 0.7, "about half of the images are mirrored"
        assert in_training and learning
        assert 5 < (labels == -1).sum() < 40
        assert (sde.sigma_min, sde.sigma_max) == (0.02, 5)
        assert options == {"weighting": DiffusionSquared(sde), "reduce_mean": True}
    in_training, learning, x0, labels, sde, options = evaluation
    assert not in_training and not learning
    assert all(bytes(image.flatten().tolist()) in known[1] for image in (x0 * 16).round().to(torch.uint8))
    assert labels.min() == 0
    assert options == {"weighting": DiffusionSquared(sde), "reduce_mean": True}
    assert clips == [0.7, 0.7]
    saved = read(tmp_path / "checkpoints/checkpoint_1.pth")
    assert torch.equal(next(drawn[0].parameters()), saved["ema"]["shadow_params"][0])


def test_a_resumed_run_takes_new_optimiser_options_and_keeps_its_step_counts(tmp_path):
    train(tiny_config("training.n_iters=6", "training.snapshot_freq=2"), tmp_path, CPU)
    cfg = tiny_config("training.n_iters=7", "training.snapshot_freq=100", "optim.beta1=0.5", "optim.eps=1e-3")
    train(cfg, tmp_path, CPU)
    state = read(tmp_path / "checkpoints-meta/checkpoint.pth")
    (group,) = state["optimizer"]["param_groups"]
    assert (group["betas"], group["eps"]) == ((0.5, 0.999), 1e-3)
    steps = {n: read(tmp_path / f"checkpoints/checkpoint_{n}.pth")["step"] for n in (1, 2, 3, 4)}
    assert steps == {1: 2, 2: 4, 3: 6, 4: 7}
    assert load_config(tmp_path).optim.beta1 == 0.5
    train(tiny_config("training.n_iters=7", "optim.lr=7"), tmp_path, CPU)  # nothing to do, nothing recorded
    assert load_config(tmp_path) == cfg


def test_a_kill_while_drawing_draws_again(tmp_path, monkeypatch):
    import training.loop

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "save_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(), tmp_path, CPU)
    assert not (tmp_path / "samples").exists()
    train(tiny_config(), tmp_path, CPU)
    assert np.load(tmp_path / "samples/iter_2/sample_0.npy").shape == (20, 8, 8, 1)
    assert len(metrics(tmp_path)) == 2


def test_restoring_copies_frozen_weights_to_the_average(tmp_path):
    cfg = tiny_config("data.classes=false")
    OmegaConf.set_struct(cfg, False)
    cfg.model = {"name": "ddpmpp", "nf": 8, "ch_mult": [1], "num_res_blocks": 1, "ema_rate": 0.9}
    first = create_state(cfg, CPU.device)
    cfg.seed = 1
    second = create_state(cfg, CPU.device)
    second.load_state_dict(first.state_dict())
    name = "fourier.frequencies"
    assert torch.equal(second.ema.model.network.get_parameter(name), first.model.network.get_parameter(name))


@pytest.mark.parametrize("bad_step", [1, 2, 3])
def test_a_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch, bad_step):
    """Metrics are logged every 50 steps, but the loss of every step is checked."""
    import training.loop

    common = ["training.snapshot_freq=1", "training.n_iters=1", "training.log_freq=50", "training.eval_freq=50"]
    train(tiny_config(*common), tmp_path, CPU)
    files = [tmp_path / "checkpoints/checkpoint_1.pth", tmp_path / "checkpoints-meta/checkpoint.pth"]
    before = [file.read_bytes() for file in files]

    honest, calls, sigmas = training.loop.score_error, [], []

    def poisoned(net, sde, x0, t, *args, **kwargs):
        calls.append(1)
        sigmas.append(sde.sigma(t))
        loss = honest(net, sde, x0, t, *args, **kwargs)
        return torch.where(torch.arange(len(t)) < 3, math.nan, loss) if len(calls) == bad_step else loss

    monkeypatch.setattr(training.loop, "score_error", poisoned)
    with pytest.raises(TrainingError, match=rf"not finite at step {1 + bad_step}, for images") as caught:
        train(tiny_config(*common, "training.n_iters=5", "training.snapshot_freq=1000"), tmp_path, CPU)
    bad = sigmas[bad_step - 1][:3]
    assert f"with sigma from {bad.min():.3g} to {bad.max():.3g};" in str(caught.value)
    assert [file.read_bytes() for file in files] == before
    assert [e["step"] for e in metrics(tmp_path)] == [1]


def test_infinite_weights_do_not_reach_a_checkpoint(tmp_path):
    """The loss of the first step is finite; Adam without eps divides 0 by 0 where a gradient is zero."""
    cfg = tiny_config("optim.eps=0", "training.snapshot_freq=1")
    with pytest.raises(TrainingError, match=r"weight .* not finite at step 1"):
        train(cfg, tmp_path, CPU)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_kill_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    checkpoint.save_atomically({"step": 1}, path)

    def killed(contents, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(TrainingError, match=r"checkpoint\.pth cannot be saved: No space"):
        checkpoint.save_atomically({"step": 2}, path)
    assert read(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def flip_a_byte(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, damage):
    often = "training.snapshot_freq_for_preemption=1"
    for name in ("whole", "damaged"):
        train(tiny_config("training.n_iters=4", often), tmp_path / name, CPU)
    newest, previous = (tmp_path / "damaged/checkpoints-meta" / f"checkpoint{n}.pth" for n in ("", "_previous"))
    assert [read(path)["step"] for path in (newest, previous)] == [4, 3]
    damage(newest)
    with caplog.at_level("INFO"):
        for name in ("whole", "damaged"):
            train(tiny_config("training.n_iters=5", often), tmp_path / name, CPU)
    assert f"{newest} cannot be read as a checkpoint" in caplog.text
    assert f"resuming from the checkpoint before it, {previous}" in caplog.text and "resuming at step 3" in caplog.text
    assert_same(*(read(tmp_path / name / "checkpoints-meta/checkpoint.pth") for name in ("whole", "damaged")))
    assert [entry["step"] for entry in metrics(tmp_path / "damaged")] == [1, 2, 3, 4, 5]


def test_a_damaged_checkpoint_never_replaces_an_intact_one(tmp_path):
    """After a kill between the two renames of a save, an intact checkpoint is found."""
    train(tiny_config("training.n_iters=2", "training.snapshot_freq_for_preemption=1"), tmp_path, CPU)
    checkpoints, state = checkpoint.Checkpoints(tmp_path), create_state(tiny_config(), CPU.device)
    previous = checkpoints.previous_path.read_bytes()
    flip_a_byte(checkpoints.resume_path)
    assert checkpoints.find() == checkpoints.previous_path
    checkpoints.restore(state, checkpoints.previous_path)
    checkpoints.save_for_resume(state)
    assert checkpoints.previous_path.read_bytes() == previous
    assert checkpoints.find() == checkpoints.resume_path
    newest = checkpoints.resume_path.read_bytes()
    checkpoints.save_for_resume(state)
    assert checkpoints.previous_path.read_bytes() == newest


def test_two_damaged_checkpoints_end_the_run_and_are_kept(tmp_path):
    train(tiny_config("training.snapshot_freq_for_preemption=1"), tmp_path, CPU)
    for path in (tmp_path / "checkpoints-meta").iterdir():
        path.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"checkpoints-meta/checkpoint.pth cannot be read as a checkpoint"):
        train(tiny_config("training.n_iters=5"), tmp_path, CPU)
    assert {path.read_bytes() for path in (tmp_path / "checkpoints-meta").iterdir()} == {b"junk"}


def test_load_pretrained_gives_the_averaged_weights(tmp_path):
    cfg = tiny_config("training.n_iters=4", "training.snapshot_freq=2", "optim.warmup=0")
    train(cfg, tmp_path, CPU)
    for stray in ("checkpoint_9.pth.tmp", "checkpoint_x.pth", "notes.txt"):
        (tmp_path / "checkpoints" / stray).write_text("stray")
    assert find_checkpoint(tmp_path).name == "checkpoint_2.pth"
    net, loaded = load_pretrained(tmp_path)
    saved = read(tmp_path / "checkpoints/checkpoint_2.pth")
    for p, shadow in zip(net.parameters(), saved["ema"]["shadow_params"], strict=True):
        assert torch.equal(p, shadow)
    assert not torch.equal(next(net.parameters()), next(iter(saved["model"].values())))
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert loaded == cfg
    first, _ = load_pretrained(tmp_path, ckpt=1)
    assert not torch.equal(next(first.parameters()), next(net.parameters()))


def test_load_pretrained_restores_frozen_frequencies(tmp_path):
    cfg = tiny_config("data.classes=false")
    OmegaConf.set_struct(cfg, False)
    cfg.model = {
        "name": "ddpmpp",
        "nf": 8,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "ema_rate": 0.9,
        "scale_by_sigma": True,
    }
    train(cfg, tmp_path, CPU)
    net, _ = load_pretrained(tmp_path)
    saved = read(tmp_path / "checkpoints/checkpoint_1.pth")["model"]
    assert torch.equal(net.network.get_parameter("fourier.frequencies"), saved["fourier.frequencies"])


def damage_config(text):
    return lambda run: (run / ".hydra/config.yaml").write_text(text)


def damage_checkpoint(change):
    return lambda run: rewrite(run / "checkpoints/checkpoint_1.pth", change)


class Hostile:
    def __reduce__(self):
        return os.system, ("echo owned > owned.txt",)


DAMAGE = {
    "no config": (lambda run: (run / ".hydra/config.yaml").unlink(), "config.yaml does not exist"),
    "config is not yaml": (damage_config("model: [1"), "config.yaml cannot be read"),
    "config is binary": (lambda run: (run / ".hydra/config.yaml").write_bytes(b"\xff\xfe\0"), "config.yaml cannot"),
    "config is empty": (damage_config(""), "no model.name"),
    "interpolation": (
        lambda run: (run / ".hydra/config.yaml").open("a").write("leak: ${oc.env:HOME}\n"),
        "interpolation",
    ),
    "config of no network": (
        lambda run: (run / ".hydra/config.yaml").write_text(
            (run / ".hydra/config.yaml").read_text().replace("model_channels: 8", "model_channels: wide")
        ),
        "config.yaml: model.model_channels=wide",
    ),
    "no checkpoints": (lambda run: (run / "checkpoints/checkpoint_1.pth").unlink(), "no checkpoint_"),
    "empty checkpoint": (lambda run: (run / "checkpoints/checkpoint_1.pth").write_bytes(b""), "checkpoint_1.pth"),
    "truncated checkpoint": (
        lambda run: os.truncate(run / "checkpoints/checkpoint_1.pth", 5000),
        "checkpoint_1.pth cannot be read",
    ),
    "hostile checkpoint": (damage_checkpoint(lambda c: c.update(model=Hostile())), "checkpoint_1.pth cannot be read"),
    "a tensor only": (lambda run: torch.save(torch.ones(3), run / "checkpoints/checkpoint_1.pth"), "it holds a"),
    "no averages": (damage_checkpoint(lambda c: c.pop("ema")), "not a checkpoint of a run"),
    "missing tensor": (damage_checkpoint(lambda c: c["model"].pop("conv_in.weight")), "conv_in.weight"),
    "misshapen average": (
        damage_checkpoint(lambda c: c["ema"]["shadow_params"].__setitem__(0, torch.ones(3))),
        "average of embed1.weight is",
    ),
    "too few averages": (damage_checkpoint(lambda c: c["ema"]["shadow_params"].pop()), "ema.shadow_params holds"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_named_and_runs_no_code(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    train(tiny_config(), tmp_path / "run", CPU)
    act, message = DAMAGE[damage]
    act(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path / "run")
    assert not (tmp_path / "owned.txt").exists()


@pytest.mark.parametrize(
    "override",
    [
        "training.batch_size=0",
        "training.n_iters=-1",
        "training.log_freq=0.5",
        "training.drop_label=1.5",
        "optim.optimizer=SGD",
        "optim.lr=fast",
        "optim.grad_clip=0",
        "optim.beta1=1",
        "training.reduce_mean=off",
        "data.random_flip=off",
        "sde.sigma_min=small",
        "sampling.steps=many",
        "eval.batch_size=0",
        "ngpus=0",
        "training.grad_accum_steps=0",
        "training.grad_accum_steps=200",
        "training.step_timeout=0",
        "training.noise_levels=lognormal",
        "training.weighting=snr",
        "training.stratified=yess",
        "training.log_sigma_std=0",
        "sde.name=subvp",
        "sampling.percentile=0",
        "precision=fp8",
        "seed=-1",
    ],
)
def test_bad_options_are_named_before_anything_is_written(tmp_path, override):
    with pytest.raises(InputError, match=override.split("=")[0].replace(".", r"\.")):
        train(tiny_config(override), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_the_published_defaults():
    cfg = composed()
    check_train(cfg, processes=1)
    assert (cfg.data.dataset, cfg.model.name, cfg.ngpus, cfg.dataroot) == ("cifar10", "ddpmpp", 1, "./datasets")
    assert OmegaConf.to_container(cfg.training) == {
        "batch_size": 128,
        "n_iters": 1300001,
        "n_images": None,
        "snapshot_freq": 50000,
        "snapshot_freq_for_preemption": 10000,
        "keep_last": None,
        "keep_every": None,
        "keep_optimizer": True,
        "snapshot_sampling": True,
        "log_freq": 50,
        "eval_freq": 100,
        "likelihood_weighting": False,
        "weighting": None,
        "reduce_mean": False,
        "drop_label": 0.2,
        "ema_snapshot_freq": None,
        "ema_lengths": [0.05, 0.1],
        "noise_levels": "uniform",
        "stratified": False,
        "log_sigma_mean": -1.2,
        "log_sigma_std": 1.2,
        "grad_accum_steps": 1,
        "activation_checkpointing": False,
        "startup_timeout": 600,
        "step_timeout": 600,
        "allow_data_change": False,
    }
    assert OmegaConf.to_container(cfg.sde) == {
        "name": "reflected_ve",
        "sigma_min": 0.01,
        "sigma_max": 5,
        "num_scales": 1000,
    }
    assert OmegaConf.to_container(cfg.optim) == {
        "optimizer": "Adam",
        "lr": 2e-4,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0,
        "warmup": 5000,
        "schedule": "constant",
        "decay_after": 70000,
        "grad_clip": 1.0,
    }

"""Noise levels and weightings in training: those that follow the loss resume exactly and in any number of processes."""

import math

import pytest
import torch

import training.metric_writer
from cli.launch import run_distributed
from datasets import Loader
from losses import LossHistory
from losses.loss_history import WARM_UP
from sde import ReflectedVE, create_process
from tests.conftest import assert_same, metrics, read, tiny_config
from training.data import load_splits
from training.loop import Loss, train
from training.metric_accumulator import MetricAccumulator
from utils.distributed import Distributed
from utils.errors import InputError

CPU = Distributed(torch.device("cpu"))
NEWEST = "checkpoints-meta/checkpoint.pth"
ADAPTIVE, LOG_VARIANCE = "training.noise_levels=loss_adaptive", "training.weighting=log_variance"
# Stratified times put six images of a step in each interval of the history: it is used after three steps.
SHORT = ["training.snapshot_sampling=false", "logger=none", "training.batch_size=192", "training.stratified=true"]
SHORT += ["optim.lr=1e-3", "optim.warmup=0", "model.dropout=0"]


@pytest.fixture(autouse=True)
def no_picture_of_losses(monkeypatch):
    """Plotting takes longer than the steps of these runs."""
    monkeypatch.setattr(training.metric_writer, "draw_losses", lambda *_: None)


def loader_of(cfg):
    images, _ = load_splits(cfg, CPU)
    return Loader(images, cfg.training.batch_size, cfg.seed, CPU.device)


@pytest.mark.parametrize("option", [ADAPTIVE, LOG_VARIANCE])
def test_a_run_that_follows_the_loss_resumes_exactly(tmp_path, option):
    for name, stops in (("whole", [7]), ("resumed", [2, 4, 7])):
        for n_iters in stops:
            train(tiny_config(*SHORT, option, f"training.n_iters={n_iters}"), tmp_path / name, CPU)
    whole, resumed = (read(tmp_path / name / NEWEST) for name in ("whole", "resumed"))
    assert_same(whole, resumed)
    assert set(whole["loss_history"]) == {"count", "mean", "mean_square"}
    assert (whole["loss_history"]["count"] >= WARM_UP).all()
    losses = [[entry["loss"] for entry in metrics(tmp_path / name)] for name in ("whole", "resumed")]
    assert losses[0] == losses[1]
    train(tiny_config(*SHORT, "training.n_iters=7"), tmp_path / "plain", CPU)
    plain = read(tmp_path / "plain" / NEWEST)
    assert plain.keys() == {"model", "ema", "optimizer", "step", "images", "scaler"}
    before, after = (metrics(tmp_path / name) for name in ("plain", "whole"))
    assert before[2]["loss"] == pytest.approx(after[2]["loss"]), "the same until the history is used"
    assert not torch.equal(plain["ema"]["shadow_params"][0], whole["ema"]["shadow_params"][0])


@pytest.mark.slow(15)
def test_two_processes_follow_the_same_loss(tmp_path):
    options = [*SHORT, ADAPTIVE, "training.n_iters=7", "training.batch_size=193"]
    train(tiny_config(*options), tmp_path / "one", CPU)
    run_distributed(train, tiny_config(*options, "ngpus=2"), tmp_path / "two", 60, 60)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for key in ("loss", "grad_norm", "eval_loss"):
        values = [[entry[key] for entry in run if key in entry] for run in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    for name, moments in read(tmp_path / "one" / NEWEST)["loss_history"].items():
        torch.testing.assert_close(read(tmp_path / "two" / NEWEST)["loss_history"][name], moments, rtol=1e-5, atol=1e-9)


def test_a_run_may_begin_and_cease_to_follow_the_loss(tmp_path):
    train(tiny_config(*SHORT), tmp_path, CPU)
    train(tiny_config(*SHORT, ADAPTIVE, "training.n_iters=4"), tmp_path, CPU)
    state = read(tmp_path / NEWEST)
    assert state["loss_history"]["count"].sum() == 2 * 192
    state["loss_history"]["mean"][3] = math.nan
    torch.save(state, tmp_path / NEWEST)
    with pytest.raises(InputError, match="mean of the loss history holds values that are not finite"):
        train(tiny_config(*SHORT, ADAPTIVE, "training.n_iters=5"), tmp_path, CPU)
    state["loss_history"] = LossHistory(intervals=5).state_dict()
    torch.save(state, tmp_path / NEWEST)
    with pytest.raises(InputError, match=r"does not fit this run: the loss history has \(5,\) intervals, not 32"):
        train(tiny_config(*SHORT, ADAPTIVE, "training.n_iters=5"), tmp_path, CPU)
    train(tiny_config(*SHORT, "training.n_iters=5"), tmp_path, CPU)
    assert "loss_history" not in read(tmp_path / NEWEST)


def test_the_held_out_loss_does_not_depend_on_noise_levels_and_weighting(tmp_path):
    """The network does not change without a learning rate."""
    quick = ["training.snapshot_sampling=false", "logger=none", "optim.lr=0"]
    found = {}
    for name, options in {
        "published": [],
        "capped": ["training.noise_levels=capped"],
        "log_normal": ["training.noise_levels=log_normal"],
        "loss_adaptive": [ADAPTIVE],
        "log_variance": [LOG_VARIANCE],
        "stratified": ["training.stratified=true"],
        "likelihood": [ADAPTIVE, "training.likelihood_weighting=true"],
    }.items():
        train(tiny_config(*quick, *options), tmp_path / name, CPU)
        found[name] = metrics(tmp_path / name)[-1]["eval_loss"]
    published = found.pop("published")
    assert found.pop("likelihood") == pytest.approx(2 * math.log(500) * published, rel=1e-5)
    assert set(found.values()) == {published}


@pytest.mark.parametrize("option", [ADAPTIVE, LOG_VARIANCE, "training.noise_levels=capped"])
def test_a_batch_is_a_function_of_seed_step_and_history(option):
    cfg = tiny_config(*SHORT, option)
    loader, process = loader_of(cfg), create_process(cfg.sde)
    first, second = Loss(cfg, process), Loss(cfg, process)
    for loss_fn in (first, second):
        if loss_fn.history is not None:
            t = (torch.arange(32_000) + 0.5) / 32_000
            loss_fn.history.update(t, torch.exp(-5 * t))
    one, same, other = first.sample_batch(loader, 3), second.sample_batch(loader, 3), first.sample_batch(loader, 4)
    assert torch.equal(one.t, same.t) and torch.equal(one.x, same.x) and not torch.equal(one.t, other.t)
    losses = torch.rand(192, generator=torch.Generator().manual_seed(0))
    objective = first.objective(losses, one)
    share = one[50:100]
    assert torch.equal(first.objective(losses[50:100], share), objective[50:100])
    if option == ADAPTIVE:
        assert torch.equal(objective, losses * one.importance) and one.importance.max() > 5 * one.importance.min()
        assert one.t.mean() < 0.4
    elif option == LOG_VARIANCE:
        factors = first.weighting.factors()[first.history.interval(one.t)].float()
        torch.testing.assert_close(objective, losses * factors)
        assert factors.max() == 10 and factors.min() < 0.3 and one.importance is None
    else:
        assert objective is losses and process.sigma(one.t).max() < 1.5


def test_reported_losses_are_means_over_uniform_times():
    """Of weights 1, 3 in a quartile, the mean is (1 L1 + 3 L2) / 4; over all it is the sum over the batch size."""
    sde, cfg = ReflectedVE(0.01, 5.0), tiny_config(ADAPTIVE)
    loss_fn = Loss(cfg, sde)
    accumulator = MetricAccumulator(CPU, sde, loss_fn.reported_levels)
    t, weights = torch.tensor([0.1, 0.2, 0.6]), torch.tensor([1.0, 3.0, 0.5])
    accumulator.add(1, torch.tensor([2.0, 6.0, 8.0]), sde.sigma(t), torch.tensor(1.0), 3, weights)
    summary = accumulator.summary()
    assert summary["loss"] == pytest.approx((2 + 18 + 4) / 3)
    assert summary["loss_by_sigma"] == [5.0, None, 8.0, None]

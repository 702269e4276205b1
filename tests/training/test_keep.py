"""Which checkpoints stay, which one is the best, and the space that they need."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import training.disk_space
import training.loop
import training.metric_writer
from evaluation.images_dir import generate_images
from models import load_pretrained
from models.export import export
from models.export import main as export_main
from models.io.run_files import best_of, checkpoint_numbers, find_checkpoint, read_records
from tests.conftest import assert_same, composed, read, tiny_config
from training.checkpoint import Checkpoints
from training.disk_space import estimate_need, in_units
from training.loop import create_state, train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = Distributed(torch.device("cpu"))
QUICK = ["training.snapshot_sampling=false", "logger=none", "training.snapshot_freq=1", "optim.warmup=0"]
LOSSES = (9.0, 1.0, 5.0, float("nan"), 3.0, 2.0, 4.0, 6.0)


@pytest.fixture(autouse=True)
def no_picture_of_losses(monkeypatch):
    monkeypatch.setattr(training.metric_writer, "draw_losses", lambda *_: None)


@pytest.fixture
def losses(monkeypatch):
    """Let the held-out loss after step n be LOSSES[n - 1]."""

    def step_of(net):
        return next(state.step for state in states if state.ema.model is net)

    states, honest = [], training.loop.create_state
    monkeypatch.setattr(training.loop, "create_state", lambda *args: states.append(honest(*args)) or states[-1])
    monkeypatch.setattr(training.loop, "evaluate", lambda _, net, *__: torch.tensor(LOSSES[step_of(net) - 1]))


def trained(run_dir, *overrides):
    train(tiny_config(*QUICK, *overrides), run_dir, CPU)
    return run_dir


def numbers(run_dir):
    return checkpoint_numbers(run_dir / "checkpoints")


def test_the_last_the_best_and_every_kth_stay(tmp_path, losses):
    run = trained(tmp_path / "run", "training.n_iters=8", "training.keep_last=2", "training.keep_every=3")
    assert numbers(run) == [2, 3, 6, 7, 8]
    records = read_records(run)
    assert [records[n].step for n in range(1, 9)] == list(range(1, 9)) == list(records)
    assert [records[n].eval_loss for n in (1, 2, 8)] == [9.0, 1.0, 6.0] and best_of(records) == 2
    everything = trained(tmp_path / "all", "training.n_iters=8")
    assert numbers(everything) == list(range(1, 9)) and read_records(everything).keys() == records.keys()
    for number in numbers(run):
        assert_same(*(read(folder / f"checkpoints/checkpoint_{number}.pth") for folder in (run, everything)))
    assert numbers(trained(tmp_path / "one", "training.n_iters=3", "training.keep_last=1")) == [2, 3]


def test_the_best_is_found_by_every_reader(tmp_path, losses):
    run = trained(tmp_path / "run", "training.n_iters=3")
    assert find_checkpoint(run, "best").name == "checkpoint_2.pth"
    best, second, last = (load_pretrained(run, n)[0].network.state_dict() for n in ("best", 2, -1))
    assert all(torch.equal(best[name], second[name]) for name in best)
    assert any(not torch.equal(best[name], last[name]) for name in best)
    export_best(run, tmp_path / "best.safetensors")
    exported = load_pretrained(tmp_path / "best.safetensors")[0].network.state_dict()
    assert all(torch.equal(best[name], exported[name]) for name in best)
    cfg = composed(f"load_dir={run}", "eval.ckpt=best", "sampling.method=multistep", "sampling.steps=1", name="vis")
    cfg.eval.batch_size = 1
    generate_images(cfg, tmp_path / "vis", CPU)
    assert OmegaConf.load(tmp_path / "vis/images/vis.yaml").eval.ckpt == 2
    with pytest.raises(InputError, match=r"checkpoint best is asked for, but .* is checkpoint 3"):
        load_pretrained(run / "checkpoints/checkpoint_3.pth", "best")


def export_best(run, out):
    """Run models.export as a script with ``--ckpt best``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export", str(run), str(out), "--format", "safetensors", "--ckpt", "best"])
        export_main()


def test_a_run_without_losses_has_no_best_and_loses_no_checkpoint(tmp_path, losses):
    run = trained(tmp_path / "run", "training.n_iters=3")
    (run / "checkpoints.json").unlink()  # as an earlier version leaves it
    with pytest.raises(InputError, match=r"eval\.ckpt=best: .*checkpoints\.json has no .* give a number, 1, 2, 3$"):
        load_pretrained(run, "best")
    trained(run, "training.n_iters=6", "training.keep_last=1")
    assert numbers(run) == [1, 2, 3, 6] and find_checkpoint(run, "best").name == "checkpoint_6.pth"


@pytest.mark.parametrize("junk", ["", "[]", '{"1": 3}', '{"x": {"step": 1, "eval_loss": 2}}', "[" * 10_000, "1e999"])
def test_damaged_losses_are_one_line(tmp_path, junk):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/checkpoint_1.pth").touch()
    (tmp_path / "checkpoints.json").write_text(junk)
    with pytest.raises(InputError, match=r"checkpoints\.json cannot be read as the losses of the checkpoints"):
        find_checkpoint(tmp_path, "best")


@pytest.mark.slow(15)
def test_a_kill_at_any_moment_leaves_a_run_that_ends_the_same(tmp_path, monkeypatch, losses):
    """Every rename and every deletion is a moment before which the run is killed."""
    options = ["training.n_iters=4", "training.keep_last=1"]
    whole = trained(tmp_path / "whole", *options)
    assert numbers(whole) == [2, 4]
    start = trained(tmp_path / "start", "training.n_iters=2", "training.keep_last=1")
    moments = 0
    while True:
        run, count = shutil.copytree(start, tmp_path / f"killed_{moments}"), 0

        def killing(act, countdown=moments):
            def wrapped(*args, **kwargs):
                nonlocal count
                name = Path(args[-1]).name  # what is renamed to, or deleted
                if name.endswith(".pth") or name == "checkpoints.json":
                    count += 1
                    if count > countdown:
                        raise KeyboardInterrupt
                return act(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killing(os.replace))
            patch.setattr(Path, "unlink", killing(Path.unlink))
            try:
                trained(run, *options)
            except KeyboardInterrupt:
                assert numbers(run) and Checkpoints(run).find() is not None
            else:
                break
        trained(run, *options)
        assert set(numbers(run)) >= {2, 4} and read_records(run) == read_records(whole)
        for name in ("checkpoints/checkpoint_4.pth", "checkpoints-meta/checkpoint.pth"):
            assert_same(*(read(folder / name) for folder in (whole, run)))
        moments += 1
        shutil.rmtree(run)
    assert moments >= 8


def test_numbers_go_on_after_deleted_checkpoints(tmp_path, losses):
    options = ["training.keep_last=1", "training.snapshot_freq_for_preemption=1"]
    run = trained(tmp_path / "run", "training.n_iters=6", *options)
    assert numbers(run) == [2, 6]
    newest = run / "checkpoints-meta/checkpoint.pth"
    newest.write_bytes(newest.read_bytes()[:-100])  # the run resumes at step 5, whose checkpoint is deleted
    trained(run, "training.n_iters=7", *options)
    assert numbers(run) == [2, 7] and read_records(run)[7].step == 7


def test_kept_checkpoints_without_the_optimizer(tmp_path):
    light, heavy = (
        trained(tmp_path / name, f"training.keep_optimizer={name == 'heavy'}", "training.n_iters=2")
        for name in ("light", "heavy")
    )
    path = light / "checkpoints/checkpoint_2.pth"
    assert read(path).keys() == {"model", "ema", "step"}
    assert path.stat().st_size < 0.6 * (heavy / "checkpoints/checkpoint_2.pth").stat().st_size
    ours, theirs = (load_pretrained(folder)[0].network.state_dict() for folder in (light, heavy))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for folder in (light, heavy):
        trained(folder, "training.n_iters=3", "training.keep_optimizer=false")
    assert_same(*(read(folder / "checkpoints-meta/checkpoint.pth") for folder in (light, heavy)))

    export(light, tmp_path / "out.safetensors", "safetensors")
    with pytest.raises(InputError, match=r"checkpoint_3\.pth has no optimizer state .* use --format safetensors"):
        export(light, tmp_path / "out")
    shutil.rmtree(light / "checkpoints-meta")
    with pytest.raises(InputError, match=r"checkpoint_3\.pth has no optimizer state .* by init_from=.*_3\.pth$"):
        trained(light, "training.n_iters=4", "training.keep_optimizer=false")


@pytest.mark.parametrize(
    "options", [[], ["training.keep_optimizer=false", "training.keep_last=1"], ["training.ema_snapshot_freq=2"]]
)
def test_the_need_of_a_run_is_foreseen(tmp_path, options, losses):
    wide = ["model.model_channels=32", "training.n_iters=5", "training.snapshot_freq=2"]
    cfg = tiny_config(*QUICK, *wide, *options)
    need = estimate_need(cfg, create_state(cfg, CPU.device), tmp_path)
    train(cfg, tmp_path, CPU)

    def size(folder):
        return sum(path.stat().st_size for path in (tmp_path / folder).rglob("*") if path.is_file())

    assert need.num_snapshots == len(numbers(tmp_path))
    assert need.snapshot == pytest.approx(size("checkpoints") / need.num_snapshots, rel=0.05)
    assert need.resume == pytest.approx(size("checkpoints-meta") / 2, rel=0.05)
    total = sum(map(size, ("checkpoints", "checkpoints-meta", "ema")))
    assert need.total == pytest.approx(total, rel=0.05)
    assert need.num_averages == len(list(tmp_path.glob("ema/*"))) == (3 if "ema" in "".join(options) else 0)
    state = create_state(cfg, CPU.device)
    state.step = 5
    assert estimate_need(cfg, state, tmp_path).total == pytest.approx(0, abs=0.05 * total)


def test_a_full_disk_is_refused_at_the_start_and_a_small_one_warned_of(tmp_path, monkeypatch, caplog):
    cfg = tiny_config(*QUICK)
    need = estimate_need(cfg, create_state(cfg, CPU.device), tmp_path)
    usage = namedtuple("usage", "total used free")

    def free(size):
        monkeypatch.setattr(training.disk_space.shutil, "disk_usage", lambda _: usage(0, 0, size))

    free(need.resume + need.snapshot - 1)
    with pytest.raises(InputError, match=r"run: its disk has .* kB free, less than the .* kB of a checkpoint to"):
        trained(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"]
    free(need.resume + need.snapshot)
    trained(tmp_path / "run")
    assert f"and the run is to write {in_units(need.total + need.resume)}" in caplog.text
    caplog.clear()
    free(need.resume + need.total)
    trained(tmp_path / "other")
    assert "the run is to write" not in caplog.text
    free(0)  # what is complete writes nothing
    trained(tmp_path / "other")


def test_sizes_in_units():
    assert [in_units(size) for size in (0, 900, 1234, 5.6e6, 7.8e12)] == [
        "0.0 kB", "0.9 kB", "1.2 kB", "5.6 MB", "7,800.0 GB",
    ]  # fmt: skip


def test_losses_are_recorded_whatever_the_frequency_of_evaluations(tmp_path):
    run = trained(tmp_path / "run", "training.n_iters=3", "training.eval_freq=100")
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["eval_loss"] for entry in entries] == [one.eval_loss for one in read_records(run).values()]

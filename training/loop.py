"""The training loop."""

import logging
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from omegaconf import DictConfig, open_dict
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets import Loader
from models import compile_network, create_model, recompute_activations
from sampling import create_sampler
from sde import ReflectedVE
from training.checkpoint import Checkpoints, TrainState
from training.data import load_splits, show_data
from training.data_record import check_same_data, describe_data, write_record
from training.ema import EMA
from training.loggers import check_logger
from training.metric_accumulator import MetricAccumulator
from training.metric_writer import MetricWriter, NullMetricWriter
from training.optimizer import create_optimizer, learning_rate
from training.run_dir import check_same_run, keep_class_names, open_run, write_config
from training.snapshots import draw_samples, set_aside
from training.step import Objective, train_step
from training.summary import summary
from utils.distributed import Distributed
from utils.schema import check_train
from utils.seeds import Stream, seed_torch
from utils.signals import StopSignals

log = logging.getLogger(__name__)


def train(cfg: DictConfig, run_dir: Path, distributed: Distributed, stop: StopSignals | None = None) -> int:
    """Train, or go on training, the run in ``run_dir`` until ``training.n_iters`` updates are made.

    Writes ``metrics.jsonl``, ``loss.png``, ``checkpoints/``, ``checkpoints-meta/``, ``samples/`` and what the logger
    keeps there. With ``training.n_iters`` 0 it only looks at the data set, and writes ``data.png``.

    Args:
        distributed: this process among those that train together.
        stop: of the signals that end the run after the step, with a checkpoint.

    Returns:
        The number of the signal that stopped the run, or 0 if it came to its end.

    Raises:
        InputError: for a bad configuration, or other data than the run had so far, before anything is written.
        TrainingError: if the loss, the gradient or a weight is not finite, or the disk is full; checkpoints are left
            as they are.
    """
    check_train(cfg, distributed.world_size)
    sde = ReflectedVE(cfg.sde.sigma_min, cfg.sde.sigma_max, cfg.sde.num_scales)
    create_sampler(cfg.sampling, sde)  # so that a bad option shows now and not at the first snapshot
    check_logger(cfg.logger.name)
    keep_class_names(run_dir, cfg)
    check_same_run(run_dir, cfg)
    state = create_state(cfg, distributed.device) if cfg.training.n_iters else None  # else it only looks at the data
    images, images_held_out = load_splits(cfg, distributed)
    data, size = cfg.data, min(cfg.eval.batch_size, len(images_held_out))
    batches = Loader(images, cfg.training.batch_size, cfg.seed, distributed.device, data.random_flip, data.dequantize)
    held_out = Loader(images_held_out, size, cfg.seed, distributed.device, dequantize=data.dequantize)
    if state is None:
        if distributed.rank == 0:
            show_data(images, images_held_out, batches, run_dir)
        return 0

    checkpoints, record = Checkpoints(run_dir), describe_data(images, images_held_out)
    with ExitStack() as held, logging_redirect_tqdm():

        def open_here() -> str | None:
            held.enter_context(open_run(run_dir, cfg))
            checkpoints.clear()
            path = checkpoints.find()
            if path is not None:
                check_same_data(run_dir, record, cfg.training.allow_data_change)
            return None if path is None else str(path)

        def record_start() -> None:
            write_config(run_dir, cfg)
            if path is None or cfg.training.allow_data_change or not (run_dir / "data.json").exists():
                write_record(run_dir, record)

        path = distributed.run_on_main(open_here)
        if path is not None:
            checkpoints.restore(state, Path(path))
        log.info(*("starting at step 0",) if path is None else ("going on at step %d, from %s", state.step, path))
        log.info("\n".join(summary(cfg, run_dir, distributed, state, images, images_held_out)))
        if state.step >= cfg.training.n_iters:
            log.info("training.n_iters=%d is reached", cfg.training.n_iters)
        else:
            if images.class_names:
                with open_dict(cfg):
                    cfg.data.class_names = list(images.class_names)
            distributed.run_on_main(record_start)
        signum = run_steps(cfg, run_dir, distributed, stop or StopSignals(), sde, state, checkpoints, batches, held_out)
        if signum:
            log.info("interrupted by %s: saved at step %d in %s", signal.Signals(signum).name, state.step, run_dir)
        return signum


def create_state(cfg: DictConfig, device: torch.device) -> TrainState:
    """A freshly initialised network with its average and optimiser."""
    seed_torch(cfg.seed, Stream.INIT)
    net = create_model(cfg.model, cfg.data, cfg.sde).set_precision(cfg.precision).to(device)
    ema = EMA(net, cfg.model.ema_rate)
    if cfg.training.activation_checkpointing:
        recompute_activations(net)
    if cfg.compile:
        compile_network(net)
        compile_network(ema.model)
    trainable = [p for p in net.parameters() if p.requires_grad]
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
    return TrainState(net, ema, create_optimizer(trainable, cfg.optim), scaler, trainable)


def run_steps(
    cfg: DictConfig,
    run_dir: Path,
    distributed: Distributed,
    stop: StopSignals,
    sde: ReflectedVE,
    state: TrainState,
    checkpoints: Checkpoints,
    batches: Loader,
    held_out: Loader,
) -> int:
    """The loop itself, from ``state.step`` to ``training.n_iters`` or to a signal, whose number it returns."""
    options = cfg.training
    objective = Objective(cfg, sde)
    net = distributed.data_parallel(state.model)
    signum, first, start = 0, state.step + 1, time.perf_counter()

    def due(freq: int) -> bool:
        return state.step % freq == 0 or state.step == options.n_iters

    def keep_snapshot() -> str:
        path, is_new = checkpoints.save_snapshot(state)
        if is_new:
            set_aside(samples_folder(), path)
        return str(path)

    def samples_folder() -> Path:
        return run_dir / "samples" / f"iter_{state.step}"

    def draw_if_due() -> None:
        folder = samples_folder()
        if not (due(options.snapshot_freq) and options.snapshot_sampling):
            return
        missing = distributed.run_on_main(lambda: not (folder / "sample_0.npy").exists())  # else of before a kill
        if missing:
            draw_samples(state.ema.model, sde, cfg, distributed, stop, folder)
        if (missing or state.step >= first) and (folder / "sample_0.npy").exists():  # it is not after a signal
            metrics.samples(state.step, folder / "sample_0.png")

    stop.defer()
    with MetricWriter(cfg, run_dir, state.step) if distributed.rank == 0 else NullMetricWriter() as metrics:
        if state.step:
            draw_if_due()  # a kill while drawing comes after the checkpoint
        distributed.use_step_timeout()
        window = MetricAccumulator(distributed, sde)
        while state.step < options.n_iters and not signum:
            lr = learning_rate(cfg.optim, state.step)
            draw = objective.sample_batch(batches, state.step)
            losses, sigma, grad_norm = train_step(objective, net, state, draw, distributed, lr, cfg.optim.grad_clip)
            window.add(state.step, losses, sigma, grad_norm, len(draw))
            metrics.advance()
            if state.step == first:
                log.info("first step after %.1f s", time.perf_counter() - start)
            signum = distributed.all_reduce_max(stop.received)

            saving = bool(signum) or due(options.snapshot_freq_for_preemption) or due(options.snapshot_freq)
            if not (saving or due(options.log_freq) or due(options.eval_freq)):
                continue

            entry = {"step": state.step, **window.summary(), "lr": lr}
            if due(options.eval_freq):
                with torch.no_grad():
                    draw = objective.sample_held_out_batch(held_out)
                    entry["eval_loss"] = objective.evaluate(state.ema.model, draw, distributed).item()
            metrics.write(entry)
            if saving:
                state.check_finite()
            if due(options.snapshot_freq):
                path = distributed.run_on_main(keep_snapshot)
                metrics.snapshot()
                log.info("step %d: wrote %s", state.step, path)
            if saving:
                distributed.run_on_main(lambda: checkpoints.save_for_resume(state))
            if not signum:
                draw_if_due()
            window = MetricAccumulator(distributed, sde)  # so that throughput does not count the time spent here
    return distributed.all_reduce_max(stop.received)  # it may have come in the last drawing

"""The training loop."""

import logging
import math
import os
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets import Batches, Images, load_images
from losses import score_matching_loss
from models import create_model, in_precision
from sampling import create_sampler, guided_score
from sampling.guidance import NULL_LABEL
from sampling.images import save_grid, save_trajectory, to_uint8
from sde import ReflectedVE
from seeds import Stream, image_generators, seed_torch
from training.checkpoint import Checkpoints, TrainState
from training.ema import EMA
from training.logs import Metrics, Window
from training.options import check_options, create_optimizer
from training.run_dir import open_run, write_config

log = logging.getLogger(__name__)


def train(cfg: DictConfig, run_dir: Path, device: torch.device) -> None:
    """Train, or go on training, the run in ``run_dir`` until ``training.n_iters`` updates are made.

    Writes ``metrics.jsonl``, ``checkpoints/``, ``checkpoints-meta/`` and ``samples/`` there.

    Raises:
        InputError: for a bad configuration, before anything is written.
        TrainingError: if the loss, the gradient or a weight is not finite; checkpoints are left as they are.
    """
    check_options(cfg)
    sde = ReflectedVE(cfg.sde.sigma_min, cfg.sde.sigma_max, cfg.sde.num_scales)
    create_sampler(cfg.sampling, sde)  # so that a bad option shows now and not at the first snapshot
    state = create_state(cfg, device)
    images, images_held_out = load_split(cfg, train=True), load_split(cfg, train=False)
    batches = Batches(images, cfg.training.batch_size, cfg.seed, device, cfg.data.random_flip)
    held_out = Batches(images_held_out, min(cfg.eval.batch_size, len(images_held_out)), cfg.seed, device)
    log.info("model %s: %s parameters on %s", cfg.model.name, f"{sum(map(Tensor.numel, state.trainable)):,}", device)
    log.info("data %s: %s images to train on, %s held out", cfg.data.dataset, len(images), len(images_held_out))

    with open_run(run_dir, cfg), logging_redirect_tqdm():
        checkpoints = Checkpoints(run_dir)
        resumed = checkpoints.restore(state)
        log.info("%s at step %d in %s", "going on" if resumed else "starting", state.step, run_dir)
        if state.step >= cfg.training.n_iters:
            log.info("training.n_iters=%d is reached", cfg.training.n_iters)
        else:
            write_config(run_dir, cfg)
        run_steps(cfg, run_dir, device, sde, state, checkpoints, batches, held_out)


def create_state(cfg: DictConfig, device: torch.device) -> TrainState:
    """A freshly initialised network with its average and optimiser."""
    seed_torch(cfg.seed, Stream.INIT)
    net = create_model(cfg.model, cfg.data, cfg.sde).to(device)
    trainable = [p for p in net.parameters() if p.requires_grad]
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
    return TrainState(net, EMA(net, cfg.model.ema_rate), create_optimizer(trainable, cfg.optim), scaler, trainable)


def run_steps(
    cfg: DictConfig,
    run_dir: Path,
    device: torch.device,
    sde: ReflectedVE,
    state: TrainState,
    checkpoints: Checkpoints,
    batches: Batches,
    held_out: Batches,
) -> None:
    """The loop itself, from ``state.step`` to ``training.n_iters``."""
    options, optim = cfg.training, cfg.optim

    def mean_loss(network: nn.Module, x0: Tensor, labels: Tensor) -> Tensor:
        return score_matching_loss(
            in_precision(network, cfg.precision),
            sde,
            x0,
            labels if network.num_classes else None,
            likelihood_weighting=options.likelihood_weighting,
            reduce_mean=options.reduce_mean,
        ).mean()

    def due(freq: int) -> bool:
        return state.step % freq == 0 or state.step == options.n_iters

    def draw_if_due() -> None:
        folder = run_dir / "samples" / f"iter_{state.step}"
        if due(options.snapshot_freq) and options.snapshot_sampling and not (folder / "sample_0.npy").exists():
            draw_samples(state.ema.network, sde, cfg, device, folder)

    if state.step:
        draw_if_due()  # a kill while drawing comes after the checkpoint
    max_norm = optim.grad_clip if optim.grad_clip >= 0 else math.inf
    window = Window(device)
    with Metrics(run_dir / "metrics.jsonl", state.step, options.n_iters) as metrics:
        while state.step < options.n_iters:
            seed_torch(cfg.seed, Stream.TRAIN, state.step)
            lr = optim.lr * min(1.0, (state.step + 1) / max(1, optim.warmup))
            for group in state.optimizer.param_groups:
                group["lr"] = lr

            x0, labels = batches(state.step)
            loss = mean_loss(state.model.train(), x0, drop_labels(labels, options.drop_label))
            state.optimizer.zero_grad(set_to_none=True)
            state.scaler.scale(loss).backward()
            state.scaler.unscale_(state.optimizer)
            grad_norm = nn.utils.clip_grad_norm_(state.trainable, max_norm)
            if state.scaler.is_enabled():  # it skips a step that overflowed and lowers its scale: no failure of the run
                grad_norm = torch.nan_to_num(grad_norm, nan=0.0, posinf=0.0)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.ema.update(state.model)
            state.step += 1
            window.add(loss, grad_norm, len(x0))
            metrics.advance()

            saving = due(options.snapshot_freq_for_preemption) or due(options.snapshot_freq)
            if not (saving or due(options.log_freq) or due(options.eval_freq)):
                continue

            entry = {"step": state.step, **window.summary(state.step), "lr": lr}
            if due(options.eval_freq):
                seed_torch(cfg.seed, Stream.EVAL)  # the same times and noise at each evaluation
                with torch.no_grad():
                    entry["eval_loss"] = mean_loss(state.ema.network, *held_out(0)).item()
            metrics.write(entry)
            if saving:
                state.check_finite()
            if due(options.snapshot_freq):
                log.info("step %d: wrote %s", state.step, checkpoints.save_snapshot(state))
            if saving:
                checkpoints.save_for_resume(state)
            draw_if_due()
            window = Window(device)  # so that throughput does not count the time spent here


def drop_labels(labels: Tensor, rate: float) -> Tensor:
    """Replace each label by the null label with probability ``rate``, image by image (classifier-free guidance)."""
    dropped = torch.rand(labels.shape, device=labels.device) < rate
    return torch.where(dropped, NULL_LABEL, labels)


def load_split(cfg: DictConfig, train: bool) -> Images:
    """The training or the held-out split of the data set that ``cfg`` names."""
    data = cfg.data
    return load_images(
        data.dataset,
        train,
        image_size=data.image_size,
        num_channels=data.num_channels,
        num_classes=data.num_classes,
        dataroot=cfg.dataroot,
    )


def draw_samples(network: nn.Module, sde: ReflectedVE, cfg: DictConfig, device: torch.device, folder: Path) -> None:
    """Draw ``eval.batch_size`` images, one class after the other, to ``sample_0.png`` and ``sample_0.npy``."""
    n, classes = cfg.eval.batch_size, network.num_classes
    labels = torch.arange(n, device=device) % classes if classes else None
    generators = image_generators(cfg.seed, range(n), device)  # the same noise at each snapshot
    shape = (cfg.data.num_channels, cfg.data.image_size, cfg.data.image_size)
    x_init = torch.stack([sde.prior_sample(shape, generator, device) for generator in generators])
    score_fn = guided_score(in_precision(network, cfg.precision), labels)
    out = create_sampler(cfg.sampling, sde)(score_fn, x_init, generators)
    pixels = to_uint8(out.samples)
    folder.mkdir(parents=True, exist_ok=True)
    save_grid(pixels, folder / "sample_0.png")
    if out.trajectory is not None:
        save_trajectory(to_uint8(out.trajectory), folder / "trajectory")
    with open(folder / ".sample_0.tmp", "wb") as file:  # the array comes last and whole: its presence says done
        np.save(file, pixels)
    os.replace(folder / ".sample_0.tmp", folder / "sample_0.npy")

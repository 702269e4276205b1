"""Training: set-up, resuming, and the loop over batch, loss, gradient, optimiser, EMA, metrics, checkpoint, samples."""

import logging
import math
import signal
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets import Loader
from datasets.augmentation import augment
from losses import DiffusionSquared, LossHistory, Weighting, create_objective
from losses.score_matching import SIGMA_SQUARED, UNIFORM_TIME, perturb, score_error
from models import ScoreModel, compile_network, compiled, create_model, null_like, recompute_activations
from models.io.config import load_config
from sampling import create_sampler
from sde import Process, create_process
from training.checkpoint import Checkpoints, TrainState
from training.data import load_splits, save_data_grid, show_data
from training.data_record import check_same_data, describe_data, write_record
from training.disk_space import check_free_space, estimate_need
from training.ema import EMA, PowerEMA
from training.finetune import load_source
from training.loggers import check_logger
from training.metric_accumulator import MetricAccumulator
from training.metric_writer import MetricWriter, NullMetricWriter
from training.optimizer import create_optimizer, learning_rate
from training.options import check_train
from training.run_dir import check_same_run, keep_recorded_classes, open_run, write_config
from training.snapshots import save_samples, set_aside
from training.summary import summary
from utils.distributed import Distributed
from utils.errors import InputError
from utils.seeds import Stream, seed_torch
from utils.signals import StopSignals

log = logging.getLogger(__name__)

MOST_COUNTED = 10_000  # classes whose frequencies are recorded: a configuration has no room for more


def train(
    cfg: DictConfig,
    run_dir: Path,
    distributed: Distributed,
    stop: StopSignals | None = None,
    progress: bool | None = None,
) -> int:
    """Train the run in ``run_dir``, from its newest checkpoint if it has one, for ``training.n_iters`` updates in all.

    With ``training.n_images`` it ends after so many images, and ``training.n_iters`` becomes the number of updates.

    Writes ``metrics.jsonl``, ``loss.png``, ``checkpoints/``, ``checkpoints-meta/``, ``ema/``, ``samples/`` and the
    files of the logger there. With ``training.n_iters`` 0 it only loads the data set, and writes ``data.png``.

    Args:
        cfg: configuration of run_train.py, resolved.
        run_dir: directory of the run.
        distributed: communication with the other processes of the run.
        stop: signals that end the run after the current step, with a checkpoint.
        progress: whether to show a progress bar; None: on a terminal.

    Returns:
        The number of the signal that stopped the run, or 0 if it reached its end.

    Raises:
        InputError: for a bad configuration, or other data than the run had so far; no file is written then.
        TrainingError: if the loss, the gradient or a weight is not finite, or the disk is full; the checkpoints stay
            unchanged.
    """
    # Check all options before any work.
    check_train(cfg, distributed.world_size)
    options, stop = cfg.training, stop or StopSignals()
    process = create_process(cfg.sde)
    loss_fn = Loss(cfg, process, distributed.device)
    create_sampler(cfg.sampling, process)
    check_logger(cfg.logger.name)
    keep_recorded_classes(run_dir, cfg)
    # In process 0 alone, which may already be writing there when another process gets here.
    distributed.run_on_main(lambda: check_same_run(run_dir, cfg))

    # Network, EMA and optimiser; training and held-out data.
    checkpoints, source = Checkpoints(run_dir), None
    if options.n_iters and cfg.init_from is not None and not distributed.run_on_main(checkpoints.exist):
        source = load_source(cfg, distributed)
    state = create_state(cfg, distributed.device, loss_fn.history) if options.n_iters else None
    if state is not None and source is not None:
        source.apply(state)
    images, held_out = load_splits(cfg, distributed)
    data, device = cfg.data, distributed.device
    loader = Loader(
        images,
        options.batch_size,
        cfg.seed,
        device,
        random_flip=data.random_flip,
        random_crop=True,
        dequantize=data.dequantize,
    )
    held_out_size = min(cfg.eval.batch_size, len(held_out))
    held_out_loader = Loader(held_out, held_out_size, cfg.seed, device, dequantize=data.dequantize)
    if state is None:
        if distributed.rank == 0:
            show_data(images, held_out, loader, run_dir, cfg.data.get("columns"))
        return 0

    record = describe_data(images, held_out)
    with ExitStack() as stack, logging_redirect_tqdm():
        # Lock the directory, and resume from its newest checkpoint.
        def find_checkpoint() -> tuple[str | None, int]:
            stack.enter_context(open_run(run_dir, cfg))
            checkpoints.clear()
            found = checkpoints.find()
            if found is None:
                return None, 0
            check_same_data(run_dir, record, options.allow_data_change)
            return str(found), load_config(run_dir, cfg.max_image_size).training.batch_size

        path, batch_size_so_far = distributed.run_on_main(find_checkpoint)
        if path is None:
            log.info("starting at step 0")
            if source is not None:
                source.report(images)
        else:
            checkpoints.restore(state, Path(path))
            state.images = state.images or state.step * batch_size_so_far
            loader.offset = state.images - state.step * options.batch_size
            log.info("resuming at step %d, from %s", state.step, path)
        if options.n_images is not None:
            options.n_iters = state.step + math.ceil(max(0, options.n_images - state.images) / options.batch_size)
        log.info("\n".join(summary(cfg, run_dir, distributed, state, images, held_out)))

        # Record the configuration and the data that the run continues with.
        def record_start() -> None:
            check_free_space(run_dir, estimate_need(cfg, state, run_dir))
            write_config(run_dir, cfg)
            if path is None or options.allow_data_change or not (run_dir / "data.json").exists():
                write_record(run_dir, record)
            if path is None and source is not None:
                source.write_record(run_dir)
                checkpoints.save_for_resume(state)  # so that resuming never reads init_from
            if images.is_image and (options.allow_data_change or not (run_dir / "data.png").exists()):
                save_data_grid(images, loader, run_dir, state.step)

        if state.step >= options.n_iters:
            log.info("training.n_iters=%d is reached", options.n_iters)
        else:
            if images.class_names:
                with open_dict(cfg):
                    cfg.data.class_names = list(images.class_names)
            counted = cfg.data.classes and images.num_classes <= MOST_COUNTED
            if counted and (path is None or options.allow_data_change):
                with open_dict(cfg):
                    cfg.data.class_counts = images.labels.bincount(minlength=images.num_classes).tolist()
            distributed.run_on_main(record_start)

        def due(freq: int) -> bool:
            return state.step % freq == 0 or state.step == options.n_iters

        def samples_folder() -> Path:
            return run_dir / "samples" / f"iter_{state.step}"

        def save_snapshot(eval_loss: float) -> str:
            snapshot, is_new = checkpoints.save_snapshot(state, eval_loss, options.keep_optimizer)
            if is_new:
                set_aside(samples_folder(), snapshot)
            return str(snapshot)

        def draw_if_due() -> None:
            folder = samples_folder()
            if not (due(options.snapshot_freq) and options.snapshot_sampling):
                return
            missing = distributed.run_on_main(lambda: not (folder / "sample_0.npy").exists())
            if missing:
                save_samples(state.ema.model, process, cfg, distributed, stop, folder, images)
            done = all((folder / f"sample_0.{kind}").exists() for kind in ("npy", "png"))  # not after a signal
            if (missing or state.step >= first_step) and done:
                metrics.samples(state.step, folder / "sample_0.png")

        # From here on signals are deferred to the end of the step.
        net = distributed.data_parallel(state.model)
        signum, first_step, start = 0, state.step + 1, time.perf_counter()
        stop.defer()
        metrics: MetricWriter | NullMetricWriter
        with (
            MetricWriter(cfg, run_dir, state.step, progress) if distributed.rank == 0 else NullMetricWriter() as metrics
        ):
            if state.step:
                draw_if_due()  # a killed run may have saved this checkpoint but not yet drawn its samples
            distributed.use_step_timeout()
            accumulator = MetricAccumulator(distributed, process, loss_fn.reported_levels)
            while state.step < options.n_iters and not signum:
                # One update: batch, loss, gradient, optimiser, EMA.
                if options.n_images is None:
                    done, length = state.step, options.n_iters
                else:
                    done, length = state.images / options.batch_size, options.n_images / options.batch_size
                lr = learning_rate(cfg.optim, state.step, done, length)
                batch = loss_fn.sample_batch(loader, state.step)
                losses, share, grad_norm = train_step(loss_fn, net, state, batch, distributed, lr, cfg.optim.grad_clip)
                accumulator.add(
                    state.step, losses, process.sigma(share.t), grad_norm, len(batch), importance=share.importance
                )
                metrics.advance()
                if state.step == first_step:
                    log.info("first step after %.1f s", time.perf_counter() - start)

                # Power-function averages, also at each kept checkpoint: its step is that of a reconstruction.
                if state.power_ema and (due(options.ema_snapshot_freq) or due(options.snapshot_freq)):
                    state.check_finite()
                    distributed.run_on_main(lambda: str(checkpoints.save_averages(state)))

                # A signal in any process stops all of them after the same step.
                signum = distributed.all_reduce_max(stop.received)
                saving = bool(signum) or due(options.snapshot_freq_for_preemption) or due(options.snapshot_freq)
                if not (saving or due(options.log_freq) or due(options.eval_freq)):
                    continue

                # Metrics, and the loss on held-out images with the EMA weights.
                entry = {"step": state.step, **accumulator.summary(), "lr": lr}
                if due(options.eval_freq) or due(options.snapshot_freq):
                    held_out_loss = evaluate(loss_fn, state.ema.model, held_out_loader, distributed).item()
                    entry["eval_loss"] = held_out_loss
                metrics.write(entry)

                # Checkpoints: one to keep, one to resume from.
                if saving:
                    state.check_finite()
                if due(options.snapshot_freq):
                    snapshot = distributed.run_on_main(partial(save_snapshot, held_out_loss))
                    metrics.snapshot()
                    log.info("step %d: wrote %s", state.step, snapshot)
                if saving:
                    distributed.run_on_main(lambda: checkpoints.save_for_resume(state))
                if due(options.snapshot_freq):
                    distributed.run_on_main(lambda: checkpoints.prune(options.keep_last, options.keep_every))

                # Samples of the EMA weights.
                if not signum:
                    draw_if_due()
                # A new accumulator, so that images_per_sec does not count the time spent here.
                accumulator = MetricAccumulator(distributed, process, loss_fn.reported_levels)

        signum = distributed.all_reduce_max(stop.received)  # a signal may have come while the last samples were drawn
        if signum:
            log.info("interrupted by %s: saved at step %d in %s", signal.Signals(signum).name, state.step, run_dir)
        return signum


def train_step(
    loss_fn: "Loss",
    net: nn.Module,
    state: TrainState,
    batch: "NoisyBatch",
    distributed: Distributed,
    lr: float,
    grad_clip: float,
) -> tuple[Tensor, "NoisyBatch", Tensor]:
    """Update the weights by the gradient of the mean loss over ``batch``, and then their moving average.

    Each process computes its share of the batch in ``training.grad_accum_steps`` micro-batches. Dropout is a function
    of (seed, step, rank, micro-batch). The host does not wait for a GPU.

    Args:
        loss_fn: loss of each sample.
        net: ``state.model``, wrapped by ``Distributed.data_parallel``.
        state: network, EMA and optimiser, which are updated in place.
        batch: whole batch, the same in every process.
        distributed: communication with the other processes of the run.
        lr: learning rate.
        grad_clip: largest norm of the gradient; negative for no limit.

    Returns:
        The losses of this process's images, (share,), with ``Weighting.fixed`` and not divided by a density; its share
        of the batch; and the norm of the whole gradient.
    """
    # Loss and gradient of this process's share.
    net.train()
    state.optimizer.zero_grad(set_to_none=True)
    share = batch[distributed.local_slice(len(batch))]
    n, num_micro, parts = len(share), loss_fn.grad_accum_steps, []
    for k in range(num_micro):
        micro_batch = share[n * k // num_micro : n * (k + 1) // num_micro]
        seed_torch(loss_fn.seed, Stream.DROPOUT, state.step, distributed.rank, k)
        with nullcontext() if k == num_micro - 1 else distributed.no_sync(net):
            loss = loss_fn(net, micro_batch, state.model.takes_labels)
            objective = loss_fn.objective(loss, micro_batch)
            state.scaler.scale(objective.sum() * (distributed.world_size / len(batch))).backward()
        parts.append(loss.detach())
    losses = torch.cat(parts)

    # Clipped gradient. In half precision the scaler skips a step that overflowed and lowers its scale.
    state.scaler.unscale_(state.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(state.trainable, grad_clip if grad_clip >= 0 else math.inf)
    if state.scaler.is_enabled():
        grad_norm = torch.nan_to_num(grad_norm, nan=0.0, posinf=0.0)

    # Optimiser and EMA.
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.ema.update(state.model)
    state.step += 1
    state.images += len(batch)
    if state.power_ema is not None:
        state.power_ema.update(state.step)

    # Moments of the loss by noise level, which the next batch follows.
    if state.history is not None:
        state.history.update(share.t, losses, distributed.all_reduce_sum)
    return losses, share, grad_norm


@torch.no_grad()
def evaluate(loss_fn: "Loss", net: ScoreModel, loader: Loader, distributed: Distributed) -> Tensor:
    """Compute the mean loss of ``net`` over the first batch of ``loader``, which is divided among the processes.

    Times and noise are the same at each evaluation. So that runs can be compared, the times are uniform and the weight
    is sigma^2, or g^2 with likelihood weighting, whatever the run trains with.
    """
    batch = loss_fn.sample_held_out_batch(loader)
    share = batch[distributed.local_slice(len(batch))]
    total = torch.zeros((), device=batch.t.device)
    if len(share):
        total = loss_fn(net, share, net.takes_labels, loss_fn.held_out_weighting).sum()
    return distributed.all_reduce_sum(total) / len(batch)


@dataclass(frozen=True)
class NoisyBatch:
    """A batch of data with the times and the noisy samples that were drawn for it.

    Attributes:
        labels: classes, int64 (B,), or conditions, float32 (B, K).
        x0: data in [0, 1], arranged as ``x``, (B, ...).
        t: times, (B,).
        x: samples of the process at these times, (B, ...).
        importance: importance weights of the times, (B,); None for 1.
        augmentation: what was done to each image, see ``datasets.augmentation.augment``; None for nothing.
    """

    labels: Tensor
    x0: Tensor
    t: Tensor
    x: Tensor
    importance: Tensor | None = None
    augmentation: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows: slice) -> "NoisyBatch":
        importance = None if self.importance is None else self.importance[rows]
        augmentation = None if self.augmentation is None else self.augmentation[rows]
        return NoisyBatch(self.labels[rows], self.x0[rows], self.t[rows], self.x[rows], importance, augmentation)


class Loss:
    """The training loss of a configuration, and the batches it is computed on.

    Every process draws the whole batch and computes its share: the numbers do not depend on the number of processes.

    Args:
        cfg: configuration of run_train.py.
        process: diffusion process.
        device: device of the batches, for the history.

    Attributes:
        history: moments of the loss that the noise levels or the weighting follow; None if neither does.
        held_out_weighting: weighting of the loss on held-out images.
        reported_levels: distribution by whose quartiles the losses are reported.

    Raises:
        InputError: if the noise-level sampler or the weighting cannot be made.
    """

    def __init__(self, cfg: DictConfig, process: Process, device: torch.device | str = "cpu") -> None:
        options = cfg.training
        self.process, self.seed = process, cfg.seed
        self.noise_levels, self.weighting, self.history = create_objective(options, process, device)
        self.held_out_weighting = self.weighting if isinstance(self.weighting, DiffusionSquared) else SIGMA_SQUARED
        self.reported_levels = UNIFORM_TIME if self.noise_levels.importance_sampling else self.noise_levels
        self.reduce_mean, self.drop_label, self.stratified = options.reduce_mean, options.drop_label, options.stratified
        self.grad_accum_steps, self.augment = options.grad_accum_steps, cfg.data.get("augment") or 0.0
        score = process.conditional_score
        self.conditional_score = torch.no_grad()(compiled(score)) if cfg.compile else score

    def __call__(
        self, net: nn.Module, batch: NoisyBatch, takes_labels: bool, weighting: Weighting | None = None
    ) -> Tensor:
        """Compute the loss of each sample of ``batch``, (B,), with ``weighting`` or else with ``Weighting.fixed``."""
        augmentation = batch.augmentation
        return score_error(
            net if augmentation is None else lambda x, sigma, labels: net(x, sigma, labels, augmentation),
            self.process,
            batch.x0,
            batch.t,
            batch.x,
            batch.labels if takes_labels else None,
            self.conditional_score,
            weighting=weighting or self.weighting.fixed,
            reduce_mean=self.reduce_mean,
        )

    def objective(self, losses: Tensor, batch: NoisyBatch) -> Tensor:
        """Multiply the ``losses`` of ``batch`` by importance weights and by the part of the weighting that changes."""
        fixed = self.weighting.fixed
        if batch.importance is not None:
            losses = losses * batch.importance
        if self.weighting is not fixed:
            sigma = self.process.sigma(batch.t)
            losses = losses * (self.weighting.weight(sigma) / fixed.weight(sigma))
        return losses

    def sample_batch(self, loader: Loader, step: int) -> NoisyBatch:
        """Draw training batch ``step``; all that is random in it is a function of (seed, step).

        The times also depend on the history, if the noise levels follow it.
        """
        seed_torch(self.seed, Stream.TRAIN, step)
        x0, labels = loader(step)
        labels, augmentation = drop_labels(labels, self.drop_label), None
        if self.augment:
            x0, augmentation = augment(x0, self.augment)
        noisy = perturb(self.process, x0, self.noise_levels, stratified=self.stratified)
        return NoisyBatch(labels, *noisy, augmentation=augmentation)

    def sample_held_out_batch(self, loader: Loader) -> NoisyBatch:
        """Draw the held-out batch; images, stratified times and noise are the same at each call, and in all runs."""
        seed_torch(self.seed, Stream.EVAL)
        x0, labels = loader(0)
        return NoisyBatch(labels, *perturb(self.process, x0, UNIFORM_TIME, stratified=True))


def drop_labels(labels: Tensor, rate: float) -> Tensor:
    """Replace each label or condition by the null one with probability ``rate`` (classifier-free guidance)."""
    dropped = torch.rand(len(labels), device=labels.device) < rate
    return torch.where(dropped.reshape(-1, *[1] * (labels.ndim - 1)), null_like(labels), labels)


def create_state(cfg: DictConfig, device: torch.device, history: LossHistory | None = None) -> TrainState:
    """Create a freshly initialised network with its EMA and optimiser, for a loss that follows ``history``.

    Raises:
        InputError: for a bad model, or a precision in which it cannot be trained on this device.
    """
    seed_torch(cfg.seed, Stream.INIT)
    net = create_model(cfg.model, cfg.data, cfg.sde).set_precision(cfg.precision).to(device)
    if cfg.precision != "fp32" and device.type == "cpu" and any(isinstance(m, nn.Conv3d) for m in net.modules()):
        # oneDNN's gradient of the weights is wrong at a depth of 2.
        raise InputError(f"precision={cfg.precision}: data with three axes train on a CPU with precision=fp32 only")
    ema = EMA(net, cfg.model.ema_rate)
    if cfg.training.activation_checkpointing:
        recompute_activations(net)
    if cfg.compile:
        compile_network(net)
        compile_network(ema.model)
    trainable = [p for p in net.parameters() if p.requires_grad]
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
    options = cfg.training
    power_ema = None if options.ema_snapshot_freq is None else PowerEMA(net, options.ema_lengths)
    optimizer = create_optimizer(trainable, cfg.optim)
    return TrainState(net, ema, optimizer, scaler, trainable, history, power_ema=power_ema)

"""Summary of a run, which is logged when it starts."""

from pathlib import Path
from shlex import quote

import torch
from omegaconf import DictConfig
from torch import Tensor

from datasets import ImageDataset
from training.checkpoint import TrainState
from training.loggers import watched_by
from utils.distributed import Distributed

ROOT = Path(__file__).resolve().parent.parent


def summary(
    cfg: DictConfig,
    run_dir: Path,
    distributed: Distributed,
    state: TrainState,
    images: ImageDataset,
    held_out: ImageDataset,
) -> list[str]:
    """Return lines on model, data, batch, devices, precision, steps, output directory and the command to resume."""
    options, device = cfg.training, distributed.device
    parameters = sum(map(Tensor.numel, state.trainable))
    shape = "x".join(map(str, images.shape))
    classes = f", {images.num_classes} classes" if cfg.data.classes else ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    switches = [key for key, on in (("compiled", cfg.compile), ("recomputing", options.activation_checkpointing)) if on]
    parts = f", in {options.grad_accum_steps} parts" if options.grad_accum_steps > 1 else ""
    watched = watched_by(cfg, run_dir)
    script = "run_train.py" if Path.cwd() == ROOT else quote(str(ROOT / "run_train.py"))
    lines = {
        "model": f"{cfg.model.name}, {parameters:,} parameters",
        "data": f"{cfg.data.dataset}, {len(images):,} images {shape} to train on, {len(held_out):,} held out{classes}",
        "batch": f"{options.batch_size} images a step, over {distributed.world_size} x {device.type} ({name}){parts}",
        "precision": ", ".join([cfg.precision, *switches]),
        "steps": f"{state.step:,} of {options.n_iters:,} done; a checkpoint to keep every {options.snapshot_freq:,}, "
        f"one to resume from every {options.snapshot_freq_for_preemption:,}",
        **({"averages": _averages(cfg, state)} if state.power_ema else {}),
        "output": str(run_dir),
        "resume": f"python {script} {quote(f'resume={run_dir}')}",
        **({"watch": watched} if watched else {}),
    }
    return [f"{key:9}  {value}" for key, value in lines.items()]


def _averages(cfg: DictConfig, state: TrainState) -> str:
    """Describe the snapshots of power-function averages, which have two bytes for each number."""
    freqs, steps = (cfg.training.ema_snapshot_freq, cfg.training.snapshot_freq), cfg.training.n_iters
    count = len({step for freq in freqs for step in (*range(freq, steps, freq), steps)})
    size = 2e-6 * len(cfg.training.ema_lengths) * sum(map(Tensor.numel, state.trainable))
    return (
        f"of relative lengths {', '.join(map(str, cfg.training.ema_lengths))}, a snapshot of {size:,.1f} MB every "
        f"{freqs[0]:,} and with each checkpoint that is kept, {count * size:,.0f} MB in all"
    )

"""Summary of a run, which is logged when it starts."""

from pathlib import Path
from shlex import quote

import torch
from omegaconf import DictConfig
from torch import Tensor

from datasets import ImageDataset
from training.checkpoint import TrainState
from training.disk_space import estimate_need, free_space, in_units
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
        "disk": _disk(cfg, state, run_dir),
        "output": str(run_dir),
        "resume": f"python {script} {quote(f'resume={run_dir}')}",
        **({"watch": watched} if watched else {}),
    }
    return [f"{key:9}  {value}" for key, value in lines.items()]


def _disk(cfg: DictConfig, state: TrainState, run_dir: Path) -> str:
    """Describe what the run is still to write."""
    need, options = estimate_need(cfg, state, run_dir), cfg.training
    parts = [f"{need.num_snapshots:,} checkpoints to keep of {in_units(need.snapshot)}"]
    if state.power_ema:
        lengths = ", ".join(map(str, options.ema_lengths))
        parts.append(f"{need.num_averages:,} averages of lengths {lengths} of {in_units(need.averages)}")
    parts.append(f"two to resume from of {in_units(need.resume)}")
    return f"{', '.join(parts)}: {in_units(need.total)} more, of {in_units(free_space(run_dir))} free"

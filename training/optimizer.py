"""Optimisers and schedules of the learning rate by name."""

import math
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
# Factors of the learning rate, from the share of the run after the warm-up that is done, in [0, 1], and the updates so
# far in units of decay_after. The last is that of EDM2 (Karras et al. 2024).
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda _progress, _time: 1.0,
    "cosine": lambda progress, _: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress, _: 1.0 - progress,
    "inverse_sqrt": lambda _, time: 1.0 / math.sqrt(max(1.0, time)),
}


def create_optimizer(params: list[torch.nn.Parameter], optim: DictConfig) -> torch.optim.Optimizer:
    """Create the optimiser that an ``optim`` configuration describes: fused on a CPU, with foreach kernels on a GPU."""
    on_cpu = params[0].device.type == "cpu"
    return OPTIMIZERS[optim.optimizer](
        params,
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=on_cpu,
        foreach=not on_cpu,
    )


def learning_rate(optim: DictConfig, step: int, done: float, length: float) -> float:
    """Return the learning rate of an update: a linear rise to ``lr`` over ``warmup`` updates, times a schedule.

    Args:
        optim: section ``optim``.
        step: number of updates before this one.
        done: how far the run is, in updates: ``step``, or the number of images so far over the batch size.
        length: length of the run, in updates too.
    """
    progress = (done - optim.warmup) / max(1.0, length - optim.warmup)
    decay = SCHEDULES[optim.schedule](min(1.0, max(0.0, progress)), done / optim.decay_after)
    return optim.lr * min(1.0, (step + 1) / max(1, optim.warmup)) * decay


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore what ``optimizer.state_dict()`` returned, but keep the options that ``optimizer`` was created with.

    The moments get the memory format of their parameters, whatever format they were saved in: a fused kernel pairs
    their elements by position in memory.
    """
    chosen = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, chosen, strict=True):
        group.update(options)
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if value.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter).copy_(value)

"""Optimisers by name, and the learning rate."""

from typing import Any

import torch
from omegaconf import DictConfig

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


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


def learning_rate(optim: DictConfig, step: int) -> float:
    """Return the learning rate of update ``step``, from 0: it rises linearly to ``lr`` over ``warmup`` updates."""
    return optim.lr * min(1.0, (step + 1) / max(1, optim.warmup))


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

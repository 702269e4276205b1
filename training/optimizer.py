"""The optimisers by their names."""

from typing import Any

import torch
from omegaconf import DictConfig

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


def create_optimizer(params: list[torch.nn.Parameter], optim: DictConfig) -> torch.optim.Optimizer:
    """The optimiser that an ``optim`` configuration asks for: one kernel for all parameters, or on a GPU for many."""
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
    """Of update ``step``, counted from 0: ``lr`` after ``warmup`` updates in which it rises linearly."""
    return optim.lr * min(1.0, (step + 1) / max(1, optim.warmup))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore what ``optimizer.state_dict()`` returned, but keep the options that ``optimizer`` was made with.

    The moments come in the memory format of their parameters, whatever they were saved in: a fused kernel takes memory
    for memory, whichever element it is.
    """
    chosen = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, chosen, strict=True):
        group.update(options)
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if value.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter).copy_(value)

"""The optimisers by their names."""

import torch
from omegaconf import DictConfig

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


def create_optimizer(params: list[torch.nn.Parameter], optim: DictConfig) -> torch.optim.Optimizer:
    """The optimiser that an ``optim`` configuration asks for."""
    return OPTIMIZERS[optim.optimizer](
        params, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, weight_decay=optim.weight_decay
    )

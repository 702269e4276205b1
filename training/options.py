"""Checks of the training configuration that need nothing else, made before any work."""

import math

import torch
from omegaconf import DictConfig, OmegaConf

from errors import InputError

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}

POSITIVE_INTEGERS = (
    "training.batch_size",
    "training.n_iters",
    "training.snapshot_freq",
    "training.log_freq",
    "training.eval_freq",
    "training.snapshot_freq_for_preemption",
    "eval.batch_size",
)
AT_LEAST_ZERO = ("seed", "optim.weight_decay", "optim.warmup", "optim.eps", "optim.lr")
RATES = ("training.drop_label", "model.ema_rate", "optim.beta1", "optim.beta2")


def check_options(cfg: DictConfig) -> None:
    """Raise InputError, naming the key, for a number out of range or an unknown optimiser."""

    def number(key: str) -> float:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{key}={value}: need a number")
        return value

    for key in POSITIVE_INTEGERS:
        if number(key) < 1 or number(key) != int(number(key)):
            raise InputError(f"{key}={number(key)}: need a positive integer")
    for key in AT_LEAST_ZERO:
        if number(key) < 0:
            raise InputError(f"{key}={number(key)}: need at least 0")
    for key in RATES:
        if not 0 <= number(key) <= 1:
            raise InputError(f"{key}={number(key)}: need a rate in [0, 1]")
    if cfg.optim.optimizer not in OPTIMIZERS:
        raise InputError(f"optim.optimizer={cfg.optim.optimizer}: known are {', '.join(OPTIMIZERS)}")
    if cfg.ngpus != 1:
        raise InputError(f"ngpus={cfg.ngpus}: this version trains in one process, use ngpus=1")


def create_optimizer(params: list[torch.nn.Parameter], optim: DictConfig) -> torch.optim.Optimizer:
    """The optimiser that an ``optim`` configuration asks for."""
    return OPTIMIZERS[optim.optimizer](
        params, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, weight_decay=optim.weight_decay
    )

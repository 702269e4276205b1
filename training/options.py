"""Checks of the training configuration that need nothing else, made before any work."""

import torch
from omegaconf import DictConfig, OmegaConf

from checks import number
from errors import InputError
from models.precision import check_precision

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}

POSITIVE_INTEGERS = (
    "training.batch_size",
    "training.snapshot_freq",
    "training.log_freq",
    "training.eval_freq",
    "training.snapshot_freq_for_preemption",
    "training.accumulate",
    "ngpus",
    "eval.batch_size",
    "data.image_size",
    "data.num_channels",
    "data.num_classes",
)
TIMEOUTS = ("training.startup_timeout", "training.step_timeout")
NOT_NEGATIVE = ("optim.weight_decay", "optim.warmup", "optim.eps", "optim.lr")
RATES = ("training.drop_label", "model.ema_rate", "optim.beta1", "optim.beta2")
BOOLEANS = (
    "training.snapshot_sampling",
    "training.likelihood_weighting",
    "training.reduce_mean",
    "data.classes",
    "data.random_flip",
    "data.dequantize",
    "model.scale_by_sigma",
)


def check_options(cfg: DictConfig, processes: int) -> None:
    """Raise InputError, naming the key, for a value that cannot be, or for less than an image for each process."""
    number(cfg, "seed", low=0, integer=True)
    if number(cfg, "optim.grad_clip") == 0:
        raise InputError("optim.grad_clip=0 leaves no gradient: need a positive norm, or a negative one for no limit")
    for key in POSITIVE_INTEGERS:
        number(cfg, key, low=1, integer=True)
    number(cfg, "training.n_iters", low=0, integer=True)
    for key in TIMEOUTS:
        number(cfg, key, low=1)
    for key in NOT_NEGATIVE:
        number(cfg, key, low=0)
    for key in RATES:
        number(cfg, key, low=0, high=1)
    for key in BOOLEANS:
        if not isinstance(OmegaConf.select(cfg, key), bool):
            raise InputError(f"{key}={OmegaConf.select(cfg, key)}: need true or false")
    for key in ("optim.beta1", "optim.beta2"):
        if OmegaConf.select(cfg, key) == 1:
            raise InputError(f"{key}=1 never forgets: need less than 1")
    check_precision(cfg.precision)
    if cfg.optim.optimizer not in OPTIMIZERS:
        raise InputError(f"optim.optimizer={cfg.optim.optimizer}: known are {', '.join(OPTIMIZERS)}")
    if cfg.training.batch_size < processes * cfg.training.accumulate:
        raise InputError(
            f"training.batch_size={cfg.training.batch_size}: less than an image for each of {processes} processes x "
            f"training.accumulate={cfg.training.accumulate}"
        )


def create_optimizer(params: list[torch.nn.Parameter], optim: DictConfig) -> torch.optim.Optimizer:
    """The optimiser that an ``optim`` configuration asks for."""
    return OPTIMIZERS[optim.optimizer](
        params, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, weight_decay=optim.weight_decay
    )

"""The options of run_train.py, each with its type and bounds, and the check of a whole configuration.

The sections ``model``, ``sde``, ``sampling`` and ``data`` have the options of what they choose, which its registry
knows; ``logger`` those of its class in training/loggers.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import Field

from training.loggers import LOGGERS, logger_options
from utils.ema_options import EMALength
from utils.errors import InputError
from utils.options import (
    Count,
    ImageSize,
    NonNegative,
    NumImages,
    Option,
    PathName,
    Positive,
    Probability,
    Seed,
    check_name,
    check_section,
    elsewhere,
    options_of,
    plain,
)

NumProcesses = Annotated[int, Field(ge=1, le=4096)]
Steps = Annotated[int, Field(ge=0, le=10**12)]
Seconds = Annotated[float, Field(ge=1, le=10**7)]
Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class CommonOptions:
    """Options of all three scripts."""

    root: PathName
    ngpus: NumProcesses
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    seed: Seed
    max_image_size: ImageSize
    debug: bool


@dataclass(frozen=True)
class TrainOptions(CommonOptions):
    """Options of run_train.py outside of the sections."""

    dataroot: PathName
    init_from: PathName | None
    resume: PathName | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the section ``training``, but for those of noise-level samplers and weightings."""

    batch_size: NumImages
    grad_accum_steps: Count
    activation_checkpointing: bool
    n_iters: Steps
    n_images: Annotated[int, Field(ge=1, le=10**15)] | None
    snapshot_freq: Count
    snapshot_freq_for_preemption: Count
    keep_last: Count | None
    keep_every: Count | None
    keep_optimizer: bool
    snapshot_sampling: bool
    log_freq: Count
    eval_freq: Count
    likelihood_weighting: bool
    reduce_mean: bool
    drop_label: Probability
    stratified: bool
    ema_snapshot_freq: Count | None
    ema_lengths: Annotated[Sequence[EMALength], Field(min_length=1, max_length=4)]
    startup_timeout: Seconds
    step_timeout: Seconds
    allow_data_change: bool


@dataclass(frozen=True)
class EvalOptions:
    """Options of the section ``eval``."""

    batch_size: NumImages


@dataclass(frozen=True)
class OptimOptions:
    """Options of the section ``optim``."""

    optimizer: Literal["Adam", "AdamW"]
    lr: NonNegative
    beta1: Decay
    beta2: Decay
    eps: NonNegative
    weight_decay: NonNegative
    warmup: NonNegative
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"]
    decay_after: Positive
    grad_clip: float


SECTIONS = {"training": TrainingOptions, "eval": EvalOptions, "optim": OptimOptions}
CHOICES = ("data", "model", "sde", "sampling", "logger")  # sections whose options depend on what they choose


def training_options() -> dict[str, Option]:
    """Return the options of the section ``training``."""
    from losses.noise_levels import noise_level_options  # imports torch
    from losses.weighting import weighting_options

    return options_of(TrainingOptions) | noise_level_options() | weighting_options()


def check_train(cfg: DictConfig, processes: int) -> None:
    """Check the configuration of run_train.py.

    Args:
        cfg: configuration with interpolations resolved.
        processes: number of processes that share a batch.

    Raises:
        InputError: naming the key at fault.
    """
    top = options_of(TrainOptions) | {name: Option(object) for name in (*SECTIONS, *CHOICES)}
    check_section(cfg, top)
    for name, options in SECTIONS.items():
        others = dict.fromkeys(map(str, cfg[name]), Option(object)) if name == "training" else {}
        check_section(cfg[name], others | options_of(options), name)
    for name in CHOICES:
        check_section(cfg[name], dict.fromkeys(map(str, cfg[name]), Option(object)), name)
    logger = cfg.logger.get("name")
    check_name("logger.name", logger, LOGGERS)
    check_section(cfg.logger, logger_options(logger), "logger", elsewhere("logger", LOGGERS, logger_options, logger))
    if cfg.optim.grad_clip == 0:
        raise InputError("optim.grad_clip=0 leaves no gradient: need a positive norm, or a negative one for no limit")
    lengths = list(cfg.training.ema_lengths)
    if len(set(lengths)) < len(lengths):
        raise InputError(f"training.ema_lengths={lengths}: a length occurs twice")
    if cfg.training.keep_every is not None and cfg.training.keep_last is None:
        raise InputError(
            f"training.keep_every={cfg.training.keep_every} is about checkpoints that training.keep_last=N deletes: "
            "give that too"
        )
    if cfg.training.batch_size < processes * cfg.training.grad_accum_steps:
        raise InputError(
            f"training.batch_size={cfg.training.batch_size}: less than an image for each of {processes} processes x "
            f"training.grad_accum_steps={cfg.training.grad_accum_steps}"
        )

    # The registries import torch, which takes a second: what is wrong with other options has been said by now.
    from datasets.options import check_shape
    from datasets.registry import DATASETS, RECORDED, data_options
    from datasets.units import check_units
    from losses import create_objective
    from models.create import NETWORKS, model_options
    from sampling import sampling_options
    from sde import DEFAULT, PROCESSES, create_process, process_options

    values = plain(cfg)
    check_section(values["training"], training_options(), "training")
    of_data = partial(data_options, has_shape="shape" in values["data"])
    for name, known, of, chosen in (
        ("model", NETWORKS, model_options, values["model"].get("name")),
        ("sde", PROCESSES, process_options, values["sde"].get("name", DEFAULT)),
        ("data", DATASETS, of_data, str(values["data"].get("dataset")).lower()),
    ):
        recorded = RECORDED if name == "data" else {}
        check_section(values[name], recorded | of(chosen), name, elsewhere(name, known, of, chosen))
    check_shape(values["data"], values["max_image_size"])
    process = create_process(values["sde"])
    check_units(values["data"], process)
    create_objective(values["training"], process)
    check_section(values["sampling"], sampling_options(), "sampling")

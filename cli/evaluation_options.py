"""The options of run_vis.py and run_eval.py, each with its type and bounds, and the checks of whole configurations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import Field

from training.options import CommonOptions
from utils.ema_options import CheckpointNumber, EMALength, WeightsName, check_weights
from utils.errors import InputError
from utils.guidance_options import GuidanceOptions
from utils.options import Count, NumImages, Option, PathName, check_section, options_of, plain


@dataclass(frozen=True)
class DrawingOptions(CommonOptions):
    """Options of run_vis.py and run_eval.py outside of the sections."""

    load_dir: PathName
    label: Annotated[Any, Field(description="a class, by number or name, a list of these, or null")]
    label_frequencies: Literal["uniform"] | None
    cond: Annotated[
        Sequence[float] | Sequence[Sequence[float]] | None,
        Field(description="a list of numbers, a list of such lists, or null"),
    ]
    w: float
    denoiser_path: PathName | None


@dataclass(frozen=True)
class VisOptions(DrawingOptions):
    """Options of run_vis.py outside of the sections."""

    given: PathName | None
    mask: PathName | None


@dataclass(frozen=True)
class VisEvalOptions:
    """Options of run_vis.py in the section ``eval``."""

    ckpt: CheckpointNumber
    ema: EMALength | None
    weights: WeightsName
    batch_size: NumImages
    rounds: Count
    save_images: bool
    particles: Annotated[int, Field(ge=1, le=10**5)]


@dataclass(frozen=True)
class VisDataOptions:
    """Options of run_vis.py in the section ``data``."""

    root: PathName | None


@dataclass(frozen=True)
class EvalOptions(DrawingOptions):
    """Options of run_eval.py outside of the sections."""

    dataroot: PathName


@dataclass(frozen=True)
class EvalDataOptions:
    """Options of run_eval.py in the section ``data``."""

    root: PathName | None
    held_out: PathName | None


@dataclass(frozen=True)
class EvalEvalOptions:
    """Options of run_eval.py in the section ``eval``."""

    ckpt: CheckpointNumber
    ema: EMALength | None
    weights: WeightsName
    batch_size: NumImages
    split: Literal["test", "train"]
    images: Count | None


@dataclass(frozen=True)
class MetricsOptions:
    """Options of the section ``metrics`` that are not those of one metric."""

    num_images: Annotated[int, Field(ge=2, le=10**8)]
    samples_path: PathName | None
    feature_weights: PathName | None
    reference: PathName | None


VIS_SECTIONS = {"eval": VisEvalOptions, "data": VisDataOptions, "guidance": GuidanceOptions}
EVAL_SECTIONS = {"eval": EvalEvalOptions, "data": EvalDataOptions, "guidance": GuidanceOptions}


def metric_options(name: str) -> dict[str, Option]:
    """Return the options of ``metrics.NAME``: the keyword arguments of the metric."""
    from evaluation.registry import METRICS  # imports torch

    return options_of(METRICS[name], leave_out=("inputs",))


def check_vis(cfg: DictConfig) -> None:
    """Raise InputError, naming the key at fault, unless ``cfg`` is a configuration of run_vis.py."""
    _check(cfg, VisOptions, VIS_SECTIONS, ("sampling",))


def check_eval(cfg: DictConfig) -> None:
    """Raise InputError, naming the key at fault, unless ``cfg`` is a configuration of run_eval.py."""
    _check(cfg, EvalOptions, EVAL_SECTIONS, ("sampling", "metrics"))

    from evaluation.registry import METRICS, check_reference  # imports torch

    known = options_of(MetricsOptions) | {name: Option(Any, required=False) for name in METRICS}
    check_section(cfg.metrics, known, "metrics")
    chosen = [name for name in METRICS if name in cfg.metrics]
    for name in chosen:
        check_section(cfg.metrics[name], metric_options(name), f"metrics.{name}")
    if not chosen:
        raise InputError(f"metrics=[]: choose some of {', '.join(METRICS)}")
    if cfg.metrics.reference is not None:
        check_reference(f"metrics.reference={cfg.metrics.reference}", chosen)


def _check(cfg: DictConfig, top: type, sections: Mapping[str, type], others: tuple[str, ...]) -> None:
    check_section(cfg, options_of(top) | {name: Option(Any) for name in (*sections, *others)})
    for name, options in sections.items():
        check_section(cfg[name], options_of(options), name)
    check_weights(cfg.eval.ema, cfg.eval.weights)
    GuidanceOptions(**plain(cfg.guidance))

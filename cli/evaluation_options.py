"""The options of run_vis.py and run_eval.py, each with its type and bounds, and the checks of whole configurations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import Field

from training.options import CommonOptions
from utils.errors import InputError
from utils.options import Count, NumImages, Option, PathName, Positive, check_section, options_of

CheckpointNumber = Annotated[int, Field(ge=-1, le=10**12)]


@dataclass(frozen=True)
class VisOptions(CommonOptions):
    """Options of run_vis.py outside of the sections."""

    load_dir: PathName
    label: Annotated[Any, Field(description="a class, by number or name, a list of these, or null")]
    w: float
    denoiser_path: PathName | None


@dataclass(frozen=True)
class VisEvalOptions:
    """Options of run_vis.py in the section ``eval``."""

    ckpt: CheckpointNumber
    batch_size: NumImages
    rounds: Count
    save_images: bool


@dataclass(frozen=True)
class EvalOptions(VisOptions):
    """Options of run_eval.py outside of the sections."""

    dataroot: PathName


@dataclass(frozen=True)
class EvalDataOptions:
    """Options of run_eval.py in the section ``data``."""

    root: PathName | None


@dataclass(frozen=True)
class EvalEvalOptions:
    """Options of run_eval.py in the section ``eval``."""

    ckpt: CheckpointNumber
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


@dataclass(frozen=True)
class FlowOptions:
    """Options of ``metrics.bpd``."""

    divergence: Literal["hutchinson", "exact"]
    num_probes: Annotated[int, Field(ge=1, le=10**4)]
    rtol: Positive
    atol: Positive


@dataclass(frozen=True)
class ElboOptions:
    """Options of ``metrics.elbo``."""

    num_times: Count
    importance_sampling: bool


@dataclass(frozen=True)
class FIDOptions:
    """``metrics.fid`` has no options."""


@dataclass(frozen=True)
class KIDOptions:
    """Options of ``metrics.kid``."""

    subsets: Count
    subset_size: Annotated[int, Field(ge=2, le=10**6)]


@dataclass(frozen=True)
class InceptionScoreOptions:
    """Options of ``metrics.inception_score``."""

    splits: Count


@dataclass(frozen=True)
class PrecisionRecallOptions:
    """Options of ``metrics.precision_recall``."""

    neighborhood: Count


METRICS: dict[str, type] = {
    "bpd": FlowOptions,
    "elbo": ElboOptions,
    "fid": FIDOptions,
    "kid": KIDOptions,
    "inception_score": InceptionScoreOptions,
    "precision_recall": PrecisionRecallOptions,
}
OF_EACH_REAL_IMAGE = ("kid", "precision_recall")  # need the features of the images, not their mean and covariance alone
VIS_SECTIONS = {"eval": VisEvalOptions}
EVAL_SECTIONS = {"eval": EvalEvalOptions, "data": EvalDataOptions}


def metric_options(name: str) -> dict[str, Option]:
    """Return the options of ``metrics.NAME``."""
    return options_of(METRICS[name])


def check_vis(cfg: DictConfig) -> None:
    """Raise InputError, naming the key at fault, unless ``cfg`` is a configuration of run_vis.py."""
    _check(cfg, VisOptions, VIS_SECTIONS, ("sampling",))


def check_eval(cfg: DictConfig) -> None:
    """Raise InputError, naming the key at fault, unless ``cfg`` is a configuration of run_eval.py."""
    _check(cfg, EvalOptions, EVAL_SECTIONS, ("sampling", "metrics"))
    chosen = [name for name in METRICS if name in cfg.metrics]
    options = options_of(MetricsOptions)
    check_section(cfg.metrics, options | {name: Option(Any, required=False) for name in METRICS}, "metrics")
    for name in chosen:
        check_section(cfg.metrics[name], metric_options(name), f"metrics.{name}")
    if not chosen:
        raise InputError(f"metrics=[]: choose some of {', '.join(METRICS)}")
    if cfg.metrics.reference is not None:
        key = f"metrics.reference={cfg.metrics.reference}"
        more = [name for name in OF_EACH_REAL_IMAGE if name in chosen]
        if more:
            raise InputError(
                f"{key} is a mean and covariance, from which {' and '.join(more)} cannot be computed: choose "
                "metrics=[fid], or leave metrics.reference out to compare with the training images"
            )
        if "fid" not in chosen:
            raise InputError(f"{key} is for fid, which is not among the chosen metrics: {', '.join(chosen)}")
    if "precision_recall" in chosen and cfg.metrics.num_images <= cfg.metrics.precision_recall.neighborhood:
        raise InputError(
            f"metrics.num_images={cfg.metrics.num_images}: need more images than metrics.precision_recall.neighborhood="
            f"{cfg.metrics.precision_recall.neighborhood}"
        )


def _check(cfg: DictConfig, top: type, sections: Mapping[str, type], others: tuple[str, ...]) -> None:
    check_section(cfg, options_of(top) | {name: Option(Any) for name in (*sections, *others)})
    for name, options in sections.items():
        check_section(cfg[name], options_of(options), name)

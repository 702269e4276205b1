"""Checks of the configuration of run_eval.py that need nothing else, made before any work."""

from omegaconf import DictConfig

from checks import number
from errors import InputError
from evaluation.evaluate import METRICS
from evaluation.likelihood import DIVERGENCES
from models.precision import check_precision

SPLITS = ("test", "train")


def check_options(cfg: DictConfig) -> None:
    """Raise InputError, naming the key, for a value that cannot be."""
    for key in ("eval.batch_size", "ngpus"):
        number(cfg, key, low=1, integer=True)
    number(cfg, "seed", low=0, integer=True)
    number(cfg, "w")
    check_precision(cfg.precision)
    if cfg.eval.split not in SPLITS:
        raise InputError(f"eval.split={cfg.eval.split}: known are {', '.join(SPLITS)}")
    if cfg.eval.images is not None:
        number(cfg, "eval.images", low=1, integer=True)
    chosen = [name for name in METRICS if name in cfg.metrics]
    if not chosen:
        raise InputError(f"metrics=[]: choose some of {', '.join(METRICS)}")
    if "bpd" in chosen:
        if cfg.metrics.bpd.divergence not in DIVERGENCES:
            raise InputError(f"metrics.bpd.divergence={cfg.metrics.bpd.divergence}: known are {', '.join(DIVERGENCES)}")
        number(cfg, "metrics.bpd.probes", low=1, integer=True)
        for key in ("metrics.bpd.rtol", "metrics.bpd.atol"):
            if number(cfg, key) <= 0:
                raise InputError(f"{key}={cfg.metrics.bpd[key.split('.')[-1]]}: need a positive number")
    if "elbo" in chosen:
        number(cfg, "metrics.elbo.times", low=1, integer=True)
        if not isinstance(cfg.metrics.elbo.importance, bool):
            raise InputError(f"metrics.elbo.importance={cfg.metrics.elbo.importance}: need true or false")
    if "kid" in chosen:
        number(cfg, "metrics.kid.subsets", low=1, integer=True)
        number(cfg, "metrics.kid.subset_size", low=2, integer=True)
    if "inception_score" in chosen:
        number(cfg, "metrics.inception_score.splits", low=1, integer=True)
    fewest = 2
    if "precision_recall" in chosen:
        fewest = 1 + number(cfg, "metrics.precision_recall.neighborhood", low=1, integer=True)
    number(cfg, "metrics.drawn", low=fewest, integer=True)

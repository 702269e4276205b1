"""Sampling from a score: samplers, guidance, images. A sampler is given score_fn(x, sigma), never a network."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from sampling.base import Sampler, Samples, check_known
from sampling.boundary import DEFAULT_PERCENTILE, WithThreshold, check_boundary, check_percentile, threshold_denoised
from sampling.denoising import WithDenoiser, posterior_mean
from sampling.few_steps import Heun, Multistep
from sampling.guidance import guided_score
from sampling.ode import ProbabilityFlow
from sampling.pc import PredictorCorrector
from sde import Process
from utils.checks import did_you_mean
from utils.errors import InputError

__all__ = [
    "Heun",
    "Multistep",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Sampler",
    "Samples",
    "create_sampler",
    "guided_score",
    "threshold_denoised",
]

METHODS: dict[str, type] = {"pc": PredictorCorrector, "ode": ProbabilityFlow, "heun": Heun, "multistep": Multistep}
DENOISERS = ("none", "mean", "network")


def create_sampler(
    cfg: Mapping[str, Any], process: Process, denoise: Callable[[Tensor], Tensor] | None = None
) -> Sampler:
    """Build the sampler that a ``sampling`` configuration names (configs/sampling/default.yaml explains its keys).

    Args:
        cfg: ``method`` and options, those of other methods included.
        process: the process.
        denoise: the function that ``denoiser=network`` applies to the samples.

    Raises:
        InputError: for a value that does not exist, is out of range, or does not fit the process.
    """
    method, denoiser, boundary = cfg["method"], cfg.get("denoiser", "none"), cfg.get("boundary")
    check_known("method", method, tuple(METHODS))
    check_known("denoiser", denoiser, DENOISERS)
    check_boundary(boundary, process)
    options = {name: {field.name for field in fields(sampler)} - {"process"} for name, sampler in METHODS.items()}
    known = set().union(*options.values(), {"percentile"})
    for key in cfg.keys() - {"method"} - known:
        raise InputError(f"sampling.{key}: no such option{did_you_mean(key, known)}")
    given = {key: value for key, value in cfg.items() if key in options[method]}
    if not process.bounded:
        given.pop("boundary", None)
    percentile = cfg.get("percentile", DEFAULT_PERCENTILE)
    check_percentile(percentile)
    if denoiser == "network":
        if denoise is None:
            raise InputError("sampling.denoiser=network: say which in denoiser_path, a key of run_vis.py")
        given.pop("denoiser", None)
        sampler: Sampler = WithDenoiser(METHODS[method](process, **given), lambda _, x: denoise(x), nfe=0)
    else:
        sampler = METHODS[method](process, **given)
    if denoiser == "mean" and method != "pc":  # whose last step can leave out its noise
        sampler = WithDenoiser(sampler, lambda score_fn, x: posterior_mean(score_fn, x, process.sigma_min), nfe=1)
    if not process.bounded and boundary is not None:
        sampler = WithThreshold(sampler, boundary, percentile)
    return sampler

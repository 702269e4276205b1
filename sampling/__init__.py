"""Drawing from a score: samplers, guidance, pictures. A sampler is given score_fn(x, sigma), never a network."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from sampling.base import Sampler, Samples, check_known
from sampling.denoising import WithDenoiser, posterior_mean
from sampling.few_steps import Heun, Multistep
from sampling.guidance import guided_score
from sampling.ode import ProbabilityFlow
from sampling.pc import PredictorCorrector
from sde import ReflectedVE
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
]

METHODS = {"pc": PredictorCorrector, "ode": ProbabilityFlow, "heun": Heun, "multistep": Multistep}
DENOISERS = ("none", "mean", "network")


def create_sampler(
    cfg: Mapping[str, Any], sde: ReflectedVE, denoise: Callable[[Tensor], Tensor] | None = None
) -> Sampler:
    """The sampler that a ``sampling`` configuration asks for (configs/sampling/default.yaml explains its keys).

    Args:
        cfg: ``method`` and options, those of other methods included.
        sde: the process.
        denoise: what ``denoiser=network`` does to the samples.

    Raises:
        InputError: for a value that does not exist or is out of range.
    """
    method, denoiser = cfg["method"], cfg.get("denoiser", "none")
    check_known("method", method, tuple(METHODS))
    check_known("denoiser", denoiser, DENOISERS)
    options = {name: {field.name for field in fields(sampler)} - {"sde"} for name, sampler in METHODS.items()}
    known = set().union(*options.values())
    for key in cfg.keys() - {"method"} - known:
        raise InputError(f"sampling.{key}: no such option{did_you_mean(key, known)}")
    given = {key: value for key, value in cfg.items() if key in options[method]}
    if denoiser == "network":
        if denoise is None:
            raise InputError("sampling.denoiser=network: say which in denoiser_path, a key of run_vis.py")
        given.pop("denoiser", None)
        return WithDenoiser(METHODS[method](sde, **given), lambda _, x: denoise(x), nfe=0)
    sampler = METHODS[method](sde, **given)
    if denoiser == "mean" and method != "pc":  # whose last step can leave out its noise
        return WithDenoiser(sampler, lambda score_fn, x: posterior_mean(score_fn, x, sde.sigma_min), nfe=1)
    return sampler

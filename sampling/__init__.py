"""Drawing from a score: samplers, guidance, pictures. A sampler is given score_fn(x, sigma), never a network."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from errors import InputError
from sampling.base import Sampler, Samples
from sampling.guidance import guided_score
from sampling.ode import ProbabilityFlow
from sampling.pc import PredictorCorrector
from sde import ReflectedVE

__all__ = ["PredictorCorrector", "ProbabilityFlow", "Sampler", "Samples", "create_sampler", "guided_score"]

METHODS = {"pc": PredictorCorrector, "ode": ProbabilityFlow}


def create_sampler(cfg: Mapping[str, Any], sde: ReflectedVE) -> Sampler:
    """The sampler that a ``sampling`` configuration asks for (configs/sampling/default.yaml explains its keys).

    Raises:
        InputError: for a value that does not exist or is out of range.
    """
    method = cfg["method"]
    if method not in METHODS:
        raise InputError(f"sampling.method={method}: known are {', '.join(METHODS)}")
    options = {name: {field.name for field in fields(sampler)} - {"sde"} for name, sampler in METHODS.items()}
    known = set().union(*options.values())
    for key in cfg.keys() - {"method"} - known:
        raise InputError(f"sampling.{key}: no such option, known are {', '.join(sorted(known))}")
    if method == "ode" and cfg.get("denoiser", "none") != "none":
        raise InputError(f"sampling.denoiser={cfg['denoiser']}: the flow adds no noise to leave out, use method=pc")
    return METHODS[method](sde, **{key: value for key, value in cfg.items() if key in options[method]})

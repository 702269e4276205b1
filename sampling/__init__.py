"""Drawing from a score: samplers, guidance, pictures. A sampler is given score_fn(x, sigma), never a network."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from errors import InputError
from sampling.guidance import guided_score
from sampling.pc import PredictorCorrector, Samples
from sde import ReflectedVE

__all__ = ["PredictorCorrector", "Samples", "create_sampler", "guided_score"]


def create_sampler(cfg: Mapping[str, Any], sde: ReflectedVE) -> PredictorCorrector:
    """The sampler that a ``sampling`` configuration asks for (configs/sampling/default.yaml explains its keys).

    Raises:
        InputError: for a value that does not exist or is out of range.
    """
    if cfg["method"] != "pc":
        raise InputError(f"sampling.method={cfg['method']}: known is pc")
    options = {key: value for key, value in cfg.items() if key != "method"}
    known = {field.name for field in fields(PredictorCorrector)} - {"sde"}
    for key in options.keys() - known:
        raise InputError(f"sampling.{key}: no such option, known are {', '.join(sorted(known))}")
    return PredictorCorrector(sde, **options)

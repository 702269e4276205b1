"""Correction of the score of a network at the faces of the cube, for the solvers of the probability flow.

The exact score has no component normal to a face. That of a network may have one, and then the field of the flow jumps
at the face in unfolded coordinates: where it points outward, a solver that controls its error takes its smallest steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.parametrization import Parametrization, expand
from sampling.base import ScoreFn, WithTransformedScore
from sde import Process
from utils.errors import InputError

FaceWidth = Literal["auto"] | Annotated[float, Field(ge=0, le=10)]
AUTO_WIDTH = 0.1
AUTO_METHODS = ("ode",)  # samplers that control their error; fixed steps and noise pass over a jump of the score


def vanish_at_faces(score_fn: ScoreFn, width: float) -> ScoreFn:
    """Return the gradient of log p(z(x)), for the score of log p and a map z that moves points away from the faces.

    Elementwise, with w = pi width sigma,

        cos(pi z) = cos(pi x) / sqrt(1 + w^2),     dz/dx = sin(pi x) / sqrt(sin(pi x)^2 + w^2),
        s'(x, sigma) = dz/dx s(z, sigma).

    Near a face, at distance d, z is at the distance sqrt(d^2 + (width sigma)^2). dz/dx is 0 on the face, and even about
    it, so that the unfolded s' is smooth there for any smooth score. A component in proportion to the distance from the
    face, as that of an exact score, stays as it is. ``score_fn`` is called once.

    Args:
        score_fn: score_fn(x, sigma) with x (B, ...) in [0, 1] and sigma (B,).
        width: width of the layer at a face, in units of sigma; 0 for ``score_fn`` itself.
    """
    if not width:
        return score_fn

    def pulled_back(x: Tensor, sigma: Tensor) -> Tensor:
        w = math.pi * width * expand(sigma.to(x.dtype), x)
        sine = torch.sin(math.pi * torch.minimum(x, 1.0 - x))  # exactly 0 on both faces
        hypotenuse = (sine.square() + w.square()).sqrt()
        z = torch.atan2(hypotenuse, torch.cos(math.pi * x)) / math.pi
        return sine / hypotenuse * score_fn(z, sigma)

    return pulled_back


def resolve_face_width(width: float | str, process: Process, parametrization: Parametrization | None) -> float:
    """Return the width for ``vanish_at_faces`` that a value of ``face_width`` means, 0 for no correction.

    Args:
        width: number, or ``auto``: a correction for a process on the cube and a network whose parametrization does not
            make its score vanish at the faces.
        process: diffusion process.
        parametrization: parametrization of the network; None for a score that needs no correction.

    Raises:
        InputError: for a width above 0 and a process without bounds.
    """
    if width == "auto":
        vanishes = parametrization is None or parametrization.vanishes_at_faces
        return AUTO_WIDTH if process.bounded and not vanishes else 0.0
    if width and not process.bounded:
        raise InputError(f"face_width={width} is for a process on [0, 1]; this one has no bounds")
    return float(width)


def sampling_face_width(cfg: Mapping[str, Any], process: Process, parametrization: Parametrization | None) -> float:
    """Return the width for the sampler that a ``sampling`` configuration names; see ``resolve_face_width``.

    ``auto`` means a correction for ``ode`` only, and none with the mollifier of the published flow.

    Raises:
        InputError: for a width above 0 that does not fit the process, or together with ``moll``.
    """
    width, moll = cfg.get("face_width", "auto"), cfg["method"] == "ode" and cfg.get("moll") is not None
    if width == "auto" and (moll or cfg["method"] not in AUTO_METHODS):
        return 0.0
    if moll and width:
        raise InputError(f"sampling.face_width={width} and sampling.moll={cfg['moll']}: choose one of the two")
    try:
        return resolve_face_width(width, process, parametrization)
    except InputError as error:
        raise InputError(f"sampling.{error}") from None


@dataclass(frozen=True)
class WithVanishingScore(WithTransformedScore):
    """A sampler applied to the score of ``vanish_at_faces``, of the given ``width``."""

    width: float

    def transform(self, score_fn: ScoreFn) -> ScoreFn:
        """See ``vanish_at_faces``."""
        return vanish_at_faces(score_fn, self.width)

"""Treatment of values outside [0, 1], the range of the data, by a sampler: ``sampling.boundary``.

A bounded process stays in the range by itself. For a process in all of space, the denoised estimate
D = x + sigma^2 score can be clipped to the range at every evaluation, by static or by dynamic thresholding (Saharia et
al. 2022, Imagen).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sampling.base import ScoreFn, WithTransformedScore
from sde import Process
from utils.errors import InputError
from utils.options import check_name

BOUNDED = ("reflect", "clip")  # values for a bounded process, of the predictor-corrector sampler
UNBOUNDED = ("none", "clip", "dynamic")  # values for a process in all of space, of every sampler
DEFAULT_PERCENTILE = 0.995
QUANTILE_ELEMENTS = 2**24  # limit of torch.quantile


def check_boundary(boundary: str | None, process: Process) -> None:
    """Raise InputError unless ``boundary`` is None or a value of ``sampling.boundary`` that fits ``process``."""
    if boundary is None:
        return
    known, other = (BOUNDED, UNBOUNDED) if process.bounded else (UNBOUNDED, BOUNDED)
    if boundary in other and boundary not in known:
        kind = "stays in [0, 1] by itself" if process.bounded else "has no bounds"
        values = ", ".join((*known, "null"))
        raise InputError(f"sampling.boundary={boundary} does not fit a process that {kind}: known are {values}")
    check_name("sampling.boundary", boundary, known)


def threshold_denoised(score_fn: ScoreFn, boundary: str | None, percentile: float = DEFAULT_PERCENTILE) -> ScoreFn:
    """Return the score whose denoised estimate D = x + sigma^2 score is that of ``score_fn``, clipped to [0, 1].

    Args:
        score_fn: score_fn(x, sigma) with x (B, ...) and sigma (B,).
        boundary: ``clip`` for min(max(D, 0), 1); ``dynamic`` for the rule of Imagen: in coordinates u = 2 D - 1, with s
            the ``percentile`` of |u| over the values of a sample and at least 1, u is clipped to [-s, s] and divided
            by s; None or ``none`` for ``score_fn`` itself.
        percentile: share of the values of a sample that dynamic thresholding keeps below s, in (0, 1].
    """
    if boundary in (None, "none"):
        return score_fn

    def score_of_thresholded(x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.to(x.dtype).square().reshape(-1, *[1] * (x.ndim - 1))
        denoised = x + variance * score_fn(x, sigma)
        if boundary == "clip":
            thresholded = denoised.clamp(0.0, 1.0)
        else:
            u = 2.0 * denoised - 1.0
            rows = u.flatten(1).abs()
            parts = rows.split(max(1, QUANTILE_ELEMENTS // rows.shape[1]))
            s = torch.cat([torch.quantile(part, percentile, dim=1) for part in parts]).clamp(min=1.0)
            s = s.reshape(variance.shape)
            thresholded = 0.5 * (torch.minimum(torch.maximum(u, -s), s) / s + 1.0)
        return (thresholded - x) / variance

    return score_of_thresholded


@dataclass(frozen=True)
class WithThreshold(WithTransformedScore):
    """A sampler applied to the score of ``threshold_denoised``.

    Args:
        sampler: sampler to run.
        boundary: ``clip`` or ``dynamic``.
        percentile: share of values that ``dynamic`` does not clip, see ``threshold_denoised``.

    Raises:
        InputError: for another boundary.
    """

    boundary: str
    percentile: Annotated[float, Field(gt=0, le=1)] = DEFAULT_PERCENTILE

    def __post_init__(self) -> None:
        check_name("sampling.boundary", self.boundary, UNBOUNDED)

    def transform(self, score_fn: ScoreFn) -> ScoreFn:
        """See ``threshold_denoised``."""
        return threshold_denoised(score_fn, self.boundary, self.percentile)

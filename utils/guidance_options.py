"""The options of the section ``guidance`` of run_vis.py and run_eval.py; sampling/guidance.py applies them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from utils.ema_options import CheckpointNumber
from utils.errors import InputError
from utils.options import NonNegative, PathName, Positive

Interval = Annotated[
    Annotated[Sequence[NonNegative], Field(min_length=2, max_length=2)] | None,
    Field(description="two noise levels, such as [0.1, 1], or null"),
]


@dataclass(frozen=True)
class GuidanceOptions:
    """How a score is guided, beside the weight w; the defaults leave plain classifier-free guidance.

    Args:
        clamp: ``hull`` for guided scores between those of the two faces; None for scores as they are.
        interval: lowest and highest noise level at which the score is guided; None for all.
        dir: run of a weaker network that takes the place of the null label or condition; None for none.
        ckpt: number of its checkpoint; -1 for the highest.
        eta: factor of the part of the guidance that is parallel to the denoised estimate; 1 for all of it.
        norm_threshold: largest norm of the guidance in units of the denoised estimate; None for no limit.
        momentum: factor of the guidance before, which is added to each; below 0 it is taken off.

    Raises:
        InputError: if the ends of ``interval`` are in the wrong order.
    """

    clamp: Literal["hull"] | None = None
    interval: Interval = None
    dir: PathName | None = None
    ckpt: CheckpointNumber = -1
    eta: NonNegative = 1.0
    norm_threshold: Positive | None = None
    momentum: Annotated[float, Field(gt=-1, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise InputError(f"guidance.interval={list(self.interval)}: need the lower noise level first")

    @property
    def of_weight(self) -> list[str]:
        """Return the keys that are set and matter only with a guidance weight."""
        keys = ("interval", "dir", "eta", "norm_threshold", "momentum")
        return [f"guidance.{key}" for key in keys if getattr(self, key) != getattr(type(self), key)]

    @property
    def projects(self) -> bool:
        """Return whether the guidance is that of Sadat et al. (2024) in any respect."""
        return self.eta != 1.0 or self.norm_threshold is not None or self.momentum != 0.0

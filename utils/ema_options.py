"""The choice of weights, by checkpoint and average: types of its options, and their check."""

from typing import Annotated, Literal

from pydantic import Field

from utils.errors import InputError
from utils.options import check_value

MIN_LENGTH, MAX_LENGTH = 0.01, 0.28  # 12^(-1/2) = 0.289 is the length of the mean over all steps
EMALength = Annotated[float, Field(ge=MIN_LENGTH, le=MAX_LENGTH)]
WeightsName = Literal["ema", "model"]
CheckpointNumber = Annotated[int, Field(ge=-1, le=10**12)] | Literal["best"]


def check_weights(ema: float | None, weights: str) -> None:
    """Raise InputError, naming the key, unless ``eval.ema`` and ``eval.weights`` are values that go together."""
    check_value("eval.ema", ema, EMALength | None)
    check_value("eval.weights", weights, WeightsName)
    if ema is not None and weights == "model":
        raise InputError(f"eval.ema={ema} is an average, and eval.weights=model is not: leave one of them out")

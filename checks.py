"""Checks of single configuration values, for the doors and the loop."""

import math

from omegaconf import DictConfig, OmegaConf

from errors import InputError


def number(
    cfg: DictConfig, key: str, low: float = -math.inf, high: float = math.inf, integer: bool = False
) -> int | float:
    """The value of ``key`` in ``cfg``, a finite number in [low, high].

    Raises:
        InputError: naming the key and what would be right.
    """
    value = OmegaConf.select(cfg, key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (integer and not isinstance(value, int)):
        kind = "an integer" if integer else "a number"
        limits = [f"at least {low:g}"] * math.isfinite(low) + [f"at most {high:g}"] * math.isfinite(high)
        raise InputError(f"{key}={value}: need {kind}{', ' * bool(limits)}{', '.join(limits)}")
    return value

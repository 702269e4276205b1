"""What a configuration value may be, and one line for one that is something else."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from omegaconf import DictConfig, OmegaConf

from utils.errors import InputError


class Check(Protocol):
    """What a value may be."""

    def __call__(self, key: str, value: Any) -> None:
        """Raise InputError, naming the ``key`` and what would be right, unless ``value`` may be."""


@dataclass(frozen=True)
class Number:
    """A finite number in [low, high], or (low, high) as far as ``above`` and ``below`` say.

    Attributes:
        integer: a whole one.
        optional: or null.
    """

    low: float = -math.inf
    high: float = math.inf
    integer: bool = False
    above: bool = False
    below: bool = False
    optional: bool = False

    def __call__(self, key: str, value: Any) -> None:
        """See ``Check``."""
        if value is None and self.optional:
            return
        fits = isinstance(value, int if self.integer else int | float) and not isinstance(value, bool)
        low_enough = fits and (value < self.high if self.below else value <= self.high)
        high_enough = fits and (value > self.low if self.above else value >= self.low)
        if low_enough and high_enough and (isinstance(value, int) or math.isfinite(value)):
            return
        limits = [f"{'more than' if self.above else 'at least'} {self.low:g}"] * math.isfinite(self.low)
        limits += [f"{'less than' if self.below else 'at most'} {self.high:g}"] * math.isfinite(self.high)
        need = ", ".join(["an integer" if self.integer else "a number", *limits])
        raise InputError(f"{key}={value}: need {need}{', or null' * self.optional}")


@dataclass(frozen=True)
class OneOf:
    """One of some names."""

    known: tuple[str, ...]

    def __call__(self, key: str, value: Any) -> None:
        """See ``Check``."""
        if not isinstance(value, str) or value not in self.known:
            raise InputError(f"{key}={value}: known are {', '.join(self.known)}{did_you_mean(value, self.known)}")


@dataclass(frozen=True)
class ListOf:
    """A list of values that each may be."""

    item: Check
    shortest: int = 0
    longest: int = 16

    def __call__(self, key: str, value: Any) -> None:
        """See ``Check``."""
        if isinstance(value, str) or not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise InputError(f"{key}={value}: need a list, such as [1, 2]")
        items = list(value)
        if not self.shortest <= len(items) <= self.longest:
            raise InputError(f"{key}={value}: need a list of {self.shortest} to {self.longest} values")
        for item in items:
            self.item(key, item)


def flag(key: str, value: Any) -> None:
    """A ``Check``: true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: need true or false")


def text(key: str, value: Any) -> None:
    """A ``Check``: a name or path."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise InputError(f"{key}={value!r}: need a name or path")


def optional_text(key: str, value: Any) -> None:
    """A ``Check``: a name or path, or null."""
    if value is not None:
        text(key, value)


def anything(key: str, value: Any) -> None:
    """A ``Check``: what another place checks."""


Schema = Mapping[str, "Check | Schema"]


def check_all(cfg: Mapping[Any, Any] | DictConfig, schema: Schema, prefix: str = "") -> None:
    """Check every value of a configuration, and that it has no key that nothing reads.

    Args:
        cfg: with interpolations resolved.
        schema: {key: check, or schema of a section}.
        prefix: of the keys, for errors.

    Raises:
        InputError: naming the first key at fault.
    """
    for name in map(str, cfg):
        if name not in schema:
            near = did_you_mean(f"{prefix}{name}", (f"{prefix}{known}" for known in schema))
            raise InputError(f"{prefix}{name}: no such option{near}")
    for name, check in schema.items():
        key = f"{prefix}{name}"
        if OmegaConf.is_missing(cfg, name):
            raise InputError(f"{key} is missing: say {key}=...")
        if name not in cfg:
            raise InputError(f"{key} is missing")
        value = cfg[name]
        if not isinstance(check, Mapping):
            check(key, value)
        elif isinstance(value, Mapping | DictConfig):
            check_all(value, check, f"{key}.")
        else:
            raise InputError(f"{key}={value}: need a section with {', '.join(check)}")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the known name that is nearest, or nothing."""
    near = difflib.get_close_matches(str(name), [str(other) for other in known], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def plain(cfg: Any, resolve: bool = False) -> dict[str, Any]:
    """A configuration as dictionaries, lists and plain values; interpolations stay as they are unless ``resolve``d."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=resolve))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a tree of dictionaries; an empty one is a value."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping) and value
        leaves |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return leaves

"""Maps between the units of the data and the unit cube, in which a process moves, with their Jacobians."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from torch import Tensor

from datasets.simplex import from_ordered, from_sticks, sticks_log_det, to_ordered, to_sticks
from sde import Process
from utils.errors import InputError
from utils.options import plain

OPEN = "open"  # in the configuration, in place of a bound that there is not
SUM_TOLERANCE = 1e-4  # by which the sum of the parts of a composition may differ from the total, relatively
ATOM = 0.01  # share of the values on a bound from which drawn ones are put on it
SNAP = 3.0  # distance from such a bound, in units of sigma_min, within which they are: 99.7 % of a half normal law
SMALLEST = 2.0**-53  # distance from an open side that stands for less, as rounding makes of values far out
NEAREST = 2.0**-24  # smallest distance from 1 of a point whose value is returned: at 1 an open side is infinite


class Units(ABC):
    """A map x -> u from values in the units of the data, (B, ...), to points of the cube, (B, *shape)."""

    @abstractmethod
    def to_cube(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the points u in [0, 1] of values ``x`` of any numeric type, in type ``dtype``."""

    @abstractmethod
    def from_cube(self, u: Tensor) -> Tensor:
        """Return the values x of points ``u`` in [0, 1]: float64, or int64 if the data are integers."""

    @abstractmethod
    def contains(self, x: Tensor) -> Tensor:
        """Return which values ``x``, (B, ...), are all finite and within the bounds, rounded as they are, bool (B,)."""

    @abstractmethod
    def snap(self, u: Tensor, sigma: float) -> Tensor:
        """Put drawn points that the noise has left beside a bound on it, if the data have an atom there.

        Samples of values on a bound are a reflected Gaussian of width ``sigma`` beside it. Where at least ``ATOM`` of
        the values lie on a bound, points nearer to it than ``SNAP`` sigma are moved onto it; others stay as they are.

        Args:
            u: points in [0, 1], (B, *shape).
            sigma: noise level of the samples, sigma_min of the process.
        """

    @abstractmethod
    def log_jacobian(self, u: Tensor) -> Tensor:
        """Return log |det du/dx| at the points ``u``, float64 (B,), to be added to the log density of ``u``."""

    @abstractmethod
    def check_process(self, process: Process) -> None:
        """Raise InputError unless samples of ``process`` are points of the cube that stand for values."""


@dataclass(frozen=True)
class Interval(Units):
    """Values of which each channel, the first axis of a sample, lies in an interval, closed or open on one side.

    With both bounds u = (x - low) / (high - low). Without an upper one u = 1 - exp(-(x - low) / scale), without a lower
    one u = exp(-(high - x) / scale): monotone, with a bound at 0 or 1 and infinity at the other end. Where the density
    of u is even near that end, that of x falls off as exp(-|x| / scale).

    Args:
        low, high: bounds of each channel, or one for all; infinite for none, on one side at most.
        scale: scale of each channel with an open side, in the units of the data; not used for others.
        mass_low, mass_high: share of the values that lie on each bound.
        levels: number of integers from low to high, of which the data consist; None for continuous values.
        dequantized: whether points of the cube are (k + u) / levels, u in [0, 1), and not k / (levels - 1); those of
            ``to_cube`` are the latter.

    Raises:
        ValueError: if low is not less than high, their difference overflows, or both sides are open.
    """

    low: Sequence[float]
    high: Sequence[float]
    scale: Sequence[float] = (1.0,)
    mass_low: Sequence[float] = (0.0,)
    mass_high: Sequence[float] = (0.0,)
    levels: int | None = None
    dequantized: bool = False

    def __post_init__(self) -> None:
        for channel, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if math.isinf(low) and math.isinf(high):
                raise ValueError(f"both sides of channel {channel} are open, and a bounded process needs a bound")
            if not low < high:
                raise ValueError(f"low={low:g} of channel {channel} is not less than high={high:g}")
            if math.isinf(high - low) and not math.isinf(low) and not math.isinf(high):
                raise ValueError(f"low={low:g} and high={high:g} of channel {channel} are too far apart")

    def to_cube(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """See ``Units``."""
        x = x.double()
        low, high, scale, open_above, open_below = self._bounds(x)
        u = (x - low) / (high - low)
        u = torch.where(open_above, -torch.expm1(-(x - low) / scale), u)
        u = torch.where(open_below, torch.exp(-(high - x) / scale), u)
        return u.to(dtype).clamp(0.0, 1.0)  # of values that rounding puts beyond a bound

    def from_cube(self, u: Tensor) -> Tensor:
        """See ``Units``; values of continuous data are in [low, high] also after rounding."""
        u = u.double()
        if self.levels is not None and self.dequantized:
            return (u * self.levels).floor().clamp(0, self.levels - 1).long() + int(self.low[0])
        if self.levels is not None:
            return (u * (self.levels - 1)).round().long() + int(self.low[0])
        low, high, scale, open_above, open_below = self._bounds(u)
        x = torch.lerp(low, high, u)  # not low + u (high - low): exact ends
        x = torch.where((u >= 0.0) & (u <= 1.0), torch.minimum(torch.maximum(x, low), high), x)
        x = torch.where(open_above, low - scale * torch.log1p(-u.clamp(max=1.0 - NEAREST)), x)
        return torch.where(open_below, high + scale * torch.log(u.clamp(min=NEAREST)), x)

    def contains(self, x: Tensor) -> Tensor:
        """See ``Units``."""
        kind = x.dtype if x.is_floating_point() else torch.float64
        low, high = (
            torch.tensor(ends, dtype=torch.float64).to(kind).reshape(-1, *[1] * (x.ndim - 2))
            for ends in (self.low, self.high)
        )
        return (x.isfinite() & (x >= low) & (x <= high)).flatten(1).all(1)

    def snap(self, u: Tensor, sigma: float) -> Tensor:
        """See ``Units``."""
        atoms = torch.tensor([self.mass_low, self.mass_high], device=u.device) >= ATOM
        at_low, at_high = atoms.reshape(2, -1, *[1] * (u.ndim - 2))
        u = torch.where(at_low & (u < SNAP * sigma), 0.0, u)
        return torch.where(at_high & (u > 1.0 - SNAP * sigma), 1.0, u)

    def log_jacobian(self, u: Tensor) -> Tensor:
        """See ``Units``."""
        u = u.double()
        low, high, scale, open_above, open_below = self._bounds(u)
        each = -torch.log(high - low).expand_as(u)
        each = torch.where(open_above, torch.log1p(-u.clamp(max=1.0 - SMALLEST)) - torch.log(scale), each)
        return torch.where(open_below, torch.log(u.clamp(min=SMALLEST)) - torch.log(scale), each).flatten(1).sum(1)

    def check_process(self, process: Process) -> None:
        """See ``Units``: any process; one without bounds leaves values out of bounds as they are."""

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return low, high and scale, and which channels are open above and below, to broadcast against ``x``."""

        columns = torch.tensor([self.low, self.high, self.scale], dtype=torch.float64, device=x.device)
        low, high, scale = columns.reshape(3, -1, *[1] * (x.ndim - 2))
        open_below, open_above = low.isinf(), high.isinf()
        # Finite stand-ins, so that the branches that are not chosen are finite too.
        return (
            torch.where(open_below, high - 1.0, low),
            torch.where(open_above, low + 1.0, high),
            scale,
            open_above,
            open_below,
        )


@dataclass(frozen=True)
class Composition(Units):
    """Compositions of n + 1 parts, at least 0, that sum to ``total``; densities are those of the first n parts.

    Args:
        kind: ``ordered`` for cumulative sums, points 0 <= u_1 <= ... <= u_n <= 1 with a constant Jacobian; ``sticks``
            for the map of Lou & Ermon (2023) from the cube, parts_i = u_i prod_{j > i} (1 - u_j).
        total: sum of the parts.
        zeros: share of the compositions in which each part is 0.
    """

    kind: Literal["ordered", "sticks"]
    total: float = 1.0
    zeros: Sequence[float] = (0.0,)

    def to_cube(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """See ``Units``; the parts are taken in proportion to their sum, so that their rounding does no harm."""
        x = x.double()
        return (to_ordered(x) if self.kind == "ordered" else to_sticks(x)).to(dtype)

    def from_cube(self, u: Tensor) -> Tensor:
        """See ``Units``."""
        u = u.double()
        return self.total * (from_ordered(u) if self.kind == "ordered" else from_sticks(u))

    def contains(self, x: Tensor) -> Tensor:
        """See ``Units``; the sum may be off by ``SUM_TOLERANCE``, relatively."""
        close = (x.sum(1) - self.total).abs() <= SUM_TOLERANCE * self.total
        return close & (x >= 0.0).all(1)

    def snap(self, u: Tensor, sigma: float) -> Tensor:
        """See ``Units``: parts below ``SNAP`` sigma (times sqrt(2) for gaps, which have two ends) become 0.

        The largest part stays, also where there are so many that all are as small.
        """
        width = SNAP * sigma * (math.sqrt(2.0) if self.kind == "ordered" else 1.0)
        parts = self.from_cube(u)
        small = (parts < self.total * width) & (parts < parts.amax(1, keepdim=True))
        parts[small & (torch.tensor(self.zeros, device=u.device) >= ATOM)] = 0.0
        return self.to_cube(parts)

    def log_jacobian(self, u: Tensor) -> Tensor:
        """See ``Units``."""
        u = u.double()
        change = u.new_zeros(len(u)) if self.kind == "ordered" else -sticks_log_det(u)
        return change - u.shape[1] * math.log(self.total)

    def check_process(self, process: Process) -> None:
        """See ``Units``: parts between points that are not in order would be negative."""
        if self.kind == "ordered" and process.elementwise:
            raise InputError("data.simplex=ordered needs a process that keeps values in order: sde=reflected_simplex")


def create_units(data: Mapping[str, Any] | DictConfig) -> Units | None:
    """Build the units that the section ``data`` of a run describes; None for data that are in the cube.

    Args:
        data: section, with ``shape`` if the lengths of its lists are to be checked.

    Raises:
        InputError: naming the key at fault; its values have the right types, but may be from somebody else.
    """
    data = plain(data) if isinstance(data, DictConfig) else data
    if data.get("low") is None:
        if data.get("high") is not None:
            raise InputError("data.low is missing")
        return None
    values = {key: _as_list(data.get(key)) for key in ("low", "high", "scale", "mass_low", "mass_high")}
    if missing := [key for key in ("high", "scale") if values[key] == [None]]:
        raise InputError(f"data.{missing[0]} is missing")
    values |= {key: [0.0] for key in ("mass_low", "mass_high") if data.get(key) is None}
    shape, simplex = data.get("shape"), data.get("simplex") is not None
    channels = max(map(len, values.values())) if shape is None else shape[0] + simplex
    for key, each in values.items():
        if len(each) not in (1, channels):
            raise InputError(f"data.{key} has {len(each)} values, and the data {channels} columns or channels")
    if simplex:
        low, high = (each[0] if len(each) == 1 else each for each in (values["low"], values["high"]))
        if low != 0 or not isinstance(high, int | float) or high <= 0 or len(shape or [1]) > 1:
            raise InputError(f"data.low={low} and data.high={high}: need 0 and the sum of the parts, of vectors")
        return Composition(data["simplex"], float(high), values["mass_low"])
    low, high, scale, mass_low, mass_high = (each * channels if len(each) == 1 else each for each in values.values())
    levels = data.get("levels") or None
    if levels and (OPEN in (*low, *high) or {*low} != {int(low[0])} or {*high} != {low[0] + levels - 1}):
        raise InputError(f"data.levels={levels}: data.low and data.high are not those of so many integers")
    try:
        return Interval(
            [-math.inf if end == OPEN else float(end) for end in low],
            [math.inf if end == OPEN else float(end) for end in high],
            [float(value) for value in scale],
            [float(value) for value in mass_low],
            [float(value) for value in mass_high],
            levels,
            bool(levels and data.get("dequantize")),
        )
    except ValueError as error:
        raise InputError(f"data.low and data.high: {error}") from None


def check_units(data: Mapping[str, Any] | DictConfig, process: Process) -> None:
    """Raise InputError, naming the key, unless the section ``data`` has units that can be made and suit ``process``."""
    units = create_units(data)
    if units is not None:
        units.check_process(process)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]

"""Distributions of the noise level, from which training and the variational bound draw their times."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from sde import Process
from utils.errors import InputError
from utils.options import Option, Positive, call_with, check_section, one_of, options_of
from utils.seeds import BatchGenerator

T_MIN = 1e-5  # lowest time in training, as in the published code


class NoiseLevelSampler(Protocol):
    """A distribution of times t in [0, 1], and with them of noise levels sigma(t)."""

    def quantile(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times at which the distribution function is ``u``, and the density of t there.

        Args:
            u: numbers in [0, 1), of any shape.

        Returns:
            Times and densities, both in the shape and type of ``u``.
        """

    def draw(
        self,
        n: int,
        generator: Generator | Sequence[Generator] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` independent times.

        Args:
            n: the number of times.
            generator: source of the times, on ``device``; or one for each of them.
            device: the device of the result.
            dtype: the type of the result.

        Returns:
            Times and the density of t at each, both (n,).
        """


class ByQuantile:
    """Base of a ``NoiseLevelSampler`` that defines ``quantile``: draws are the quantiles of uniform numbers."""

    def quantile(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times at which the distribution function is ``u``, and the density of t there."""
        raise NotImplementedError

    def draw(
        self,
        n: int,
        generator: Generator | Sequence[Generator] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` independent times; see ``NoiseLevelSampler``."""
        return self.quantile(BatchGenerator(generator).rand((n,), device, dtype))


@dataclass(frozen=True)
class UniformTime(ByQuantile):
    """Times uniform in [t_min, 1]: log sigma is uniform, as in the published code.

    Args:
        t_min: lowest time.
    """

    t_min: float = T_MIN

    def quantile(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return t_min + (1 - t_min) u and the density 1 / (1 - t_min); see ``NoiseLevelSampler``."""
        return self.t_min + (1.0 - self.t_min) * u, torch.full_like(u, 1.0 / (1.0 - self.t_min))


@dataclass(frozen=True)
class LogNormal(ByQuantile):
    """Noise levels whose logarithm is normal, cut to the range of the process (Karras et al. 2022, EDM).

    Args:
        process: the process, which says where sigma(t) lies.
        log_sigma_mean: mean of log sigma before the cut.
        log_sigma_std: standard deviation of log sigma before the cut.

    Raises:
        InputError: if ``log_sigma_std`` is not positive, or the range of the process has no probability.
    """

    process: Process
    log_sigma_mean: float = -1.2
    log_sigma_std: Positive = 1.2

    def __post_init__(self) -> None:
        options = options_of(LogNormal, leave_out=("process",))
        check_section({key: getattr(self, key) for key in options}, options, "training")
        low, high = self._range()
        if not high - low > 1e-6:
            raise InputError(
                f"training.log_sigma_mean={self.log_sigma_mean} and training.log_sigma_std={self.log_sigma_std} put no "
                f"noise level between sde.sigma_min={self.process.sigma_min} and sde.sigma_max={self.process.sigma_max}"
            )

    def quantile(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times of the quantiles of sigma and the density of t there; see ``NoiseLevelSampler``."""
        low, high = self._range()
        z = torch.special.ndtri(low + (high - low) * u.double())
        sigma = (
            (self.log_sigma_mean + self.log_sigma_std * z).exp().clamp(self.process.sigma_min, self.process.sigma_max)
        )
        growth = 0.5 * (self.process.diffusion_at(sigma) / sigma).square()  # d log sigma / dt
        density = torch.exp(-0.5 * z.square()) / (math.sqrt(2.0 * math.pi) * self.log_sigma_std * (high - low)) * growth
        return self.process.time(sigma).clamp(0.0, 1.0).to(u.dtype), density.to(u.dtype)

    def _range(self) -> tuple[float, float]:
        """Return the distribution function of the normal law at both ends of the range of log sigma."""
        ends = torch.tensor([self.process.sigma_min, self.process.sigma_max], dtype=torch.float64).log()
        low, high = torch.special.ndtr((ends - self.log_sigma_mean) / self.log_sigma_std).tolist()
        return low, high


class PiecewiseUniform(ByQuantile):
    """Times that fall in one of K equal intervals of [0, 1] with given probabilities, and uniformly within it.

    Args:
        probabilities: positive numbers, up to a factor, (K,).
    """

    def __init__(self, probabilities: Tensor) -> None:
        self.probabilities = probabilities

    def quantile(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the quantiles of the piecewise constant density and its values there; see ``NoiseLevelSampler``."""
        heights = self.probabilities.to(u) * (len(self.probabilities) / self.probabilities.sum().to(u))
        edges = torch.cat([heights.new_zeros(1), heights.cumsum(0)]) / len(heights)
        interval = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, len(heights) - 1)
        density = heights[interval]
        return (interval / len(heights) + (u - edges[interval]) / density).clamp(0.0, 1.0), density


NOISE_LEVELS: dict[str, Callable[..., NoiseLevelSampler]] = {"uniform": lambda: UniformTime(), "log_normal": LogNormal}


def noise_level_options() -> dict[str, Option]:
    """Return the options of the section ``training`` that choose a noise-level sampler, and those of all samplers."""
    found = {"noise_levels": one_of(NOISE_LEVELS)}
    for sampler in NOISE_LEVELS.values():
        found |= options_of(sampler, leave_out=("process",))
    return found


def create_noise_levels(training: Mapping[str, Any], process: Process) -> NoiseLevelSampler:
    """Build the distribution of noise levels that ``training.noise_levels`` names.

    Args:
        training: the section ``training`` of a configuration.
        process: the process.

    Raises:
        InputError: for an unknown name, or an option out of range.
    """
    known = noise_level_options()
    check_section({key: value for key, value in training.items() if key in known}, known, "training")
    return call_with(NOISE_LEVELS[training["noise_levels"]], {"process": process}, training)

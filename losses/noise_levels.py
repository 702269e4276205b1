"""Distributions of the noise level, from which training and the variational bound draw their times."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from losses.loss_history import LossHistory
from sde import Process
from utils.errors import InputError
from utils.options import Option, Positive, call_with, check_section, one_of, options_of
from utils.seeds import BatchGenerator

T_MIN = 1e-5  # lowest time in training, as in the published code
UNIFORM_SHARE = 0.1  # of the times of LossAdaptive, so that no loss is divided by less than a tenth


class NoiseLevelSampler(Protocol):
    """A distribution of times t in [0, 1], and with them of noise levels sigma(t).

    Attributes:
        importance_sampling: True if training divides the loss by the density of t relative to that of ``UniformTime``,
            so that its expectation is that of uniform times; False if the density weighs the noise levels.
    """

    @property
    def importance_sampling(self) -> bool: ...

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

    importance_sampling: ClassVar[bool] = False

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
    """Times uniform in [t_min, t_max]: log sigma is uniform, in the published code up to t_max = 1.

    Args:
        t_min: lowest time.
        t_max: highest time.
    """

    t_min: float = T_MIN
    t_max: float = 1.0

    def quantile(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return t_min + (t_max - t_min) u and the density 1 / (t_max - t_min); see ``NoiseLevelSampler``."""
        length = self.t_max - self.t_min
        return self.t_min + length * u, torch.full_like(u, 1.0 / length)


def uniform_below_prior(process: Process) -> UniformTime:
    """Return times uniform up to where the process has reached its prior, above which no score is left to learn.

    Args:
        process: the process, which says where that is.

    Raises:
        InputError: if no noise level of training is below it.
    """
    if process.prior_sigma >= process.sigma_max:
        return UniformTime()
    t_max = process.time(torch.tensor(process.prior_sigma, dtype=torch.float64)).item()
    if t_max <= T_MIN:
        raise InputError(
            f"training.noise_levels=capped leaves no noise level between sde.sigma_min={process.sigma_min} and that of "
            f"the prior, {process.prior_sigma}"
        )
    return UniformTime(t_max=t_max)


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


@dataclass(frozen=True)
class LossAdaptive(ByQuantile):
    """Times drawn by the size of the loss, which is divided by their density (Nichol & Dhariwal 2021, section 3.3).

    The density is constant in each interval of the history and proportional to the root mean square of the loss there,
    which for independent times minimises the variance of the mean loss; UNIFORM_SHARE of the times stay uniform. Until
    every interval has had some samples all are.

    Args:
        history: moments of the loss by noise level.
    """

    importance_sampling: ClassVar[bool] = True

    history: LossHistory

    def probabilities(self) -> Tensor:
        """Return the probability of each interval of the history, float64 (K,)."""
        history = self.history
        sizes = torch.where(history.ready.all(), history.mean_square.sqrt(), 1.0)
        return (1.0 - UNIFORM_SHARE) * sizes / sizes.sum() + UNIFORM_SHARE / len(history)

    def quantile(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the quantiles of the piecewise constant density and its values there; see ``NoiseLevelSampler``."""
        share, height = PiecewiseUniform(self.probabilities()).quantile(u.double())
        t, density = UniformTime().quantile(share)
        return t.to(u.dtype), (density * height).to(u.dtype)


NOISE_LEVELS: dict[str, Callable[..., NoiseLevelSampler]] = {
    "uniform": lambda: UniformTime(),
    "capped": uniform_below_prior,
    "log_normal": LogNormal,
    "loss_adaptive": LossAdaptive,
}
NOT_OPTIONS = ("process", "history")  # arguments of samplers and weightings that no key of a configuration gives


def noise_level_options() -> dict[str, Option]:
    """Return the options of the section ``training`` that choose a noise-level sampler, and those of all samplers."""
    found = {"noise_levels": one_of(NOISE_LEVELS)}
    for sampler in NOISE_LEVELS.values():
        found |= options_of(sampler, leave_out=NOT_OPTIONS)
    return found


def create_noise_levels(
    training: Mapping[str, Any], process: Process, history: LossHistory | None = None
) -> NoiseLevelSampler:
    """Build the distribution of noise levels that ``training.noise_levels`` names.

    Args:
        training: the section ``training`` of a configuration.
        process: the process.
        history: moments of the loss, for a sampler that follows them; None for new ones.

    Raises:
        InputError: for an unknown name, or an option out of range.
    """
    known = noise_level_options()
    check_section({key: value for key, value in training.items() if key in known}, known, "training")
    given = {"process": process, "history": history or LossHistory()}
    return call_with(NOISE_LEVELS[training["noise_levels"]], given, training)

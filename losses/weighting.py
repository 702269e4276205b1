"""Weights of the squared error of the score by noise level."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from losses.loss_history import LossHistory
from losses.noise_levels import NOT_OPTIONS
from sde import Process
from utils.errors import InputError
from utils.options import Option, call_with, check_section, one_of, options_of

LARGEST_FACTOR = 10.0  # of LogVariance, where the reflected process has nearly no loss left


class Weighting(Protocol):
    """A weight of the squared error of the score, as a function of the noise level; implementations derive from it."""

    @property
    def fixed(self) -> "Weighting":
        """The part of the weighting that does not change in training; the losses in metrics.jsonl have this weight."""
        return self

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weights at noise levels ``sigma``, positive, in their shape."""
        ...

    def root(self, sigma: Tensor) -> Tensor:
        """Return the square roots of the weights, by which the loss multiplies the error before it is squared."""
        return self.weight(sigma).sqrt()


@dataclass(frozen=True)
class SigmaSquared(Weighting):
    """The weight sigma^2, for images: every noise level has an error of the same order."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return sigma^2."""
        return sigma * sigma

    def root(self, sigma: Tensor) -> Tensor:
        """Return sigma, without the rounding of the square and its root."""
        return sigma


@dataclass(frozen=True)
class DiffusionSquared(Weighting):
    """The weight g^2, for likelihood: the loss is then the diffusion term of the variational bound.

    Args:
        process: diffusion process with the diffusion coefficient g.
    """

    process: Process

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the square of the diffusion coefficient where the noise level is ``sigma``."""
        return self.root(sigma).square()

    def root(self, sigma: Tensor) -> Tensor:
        """Return the diffusion coefficient where the noise level is ``sigma``."""
        return self.process.diffusion_at(sigma)


@dataclass(frozen=True)
class LogVariance(Weighting):
    """The weight sigma^2 exp(-u(sigma)) of Karras et al. 2024 (EDM2, eq. 14-15), which makes all noise levels equal.

    EDM2 learns u together with the network, as the minimiser of E[exp(-u(sigma)) L + u(sigma)] with
    L = sigma^2 |error|^2. For a given sigma that minimiser is u = log E[L | sigma]. Here it is tracked and not learned:
    u is the logarithm of the running mean of L in an interval of noise levels, so there is no second network.

    Two things differ from exp(-u). It is multiplied by the mean of E[L | sigma] over the intervals, so that the loss,
    and with it the norm of the gradient that ``optim.grad_clip`` limits, keep their size. And the factor is at most
    LARGEST_FACTOR: the loss of the reflected process vanishes where it becomes uniform, and 1 / E[L | sigma] would
    have no bound there. Intervals without enough samples have the factor 1.

    Args:
        process: diffusion process, which says at which time a noise level occurs.
        history: moments of the loss by noise level.
    """

    process: Process
    history: LossHistory

    @property
    def fixed(self) -> Weighting:
        """Return the weight sigma^2, of the losses that the history has."""
        return SigmaSquared()

    def factors(self) -> Tensor:
        """Return the ratio of the weight to sigma^2 in each interval of the history, float64 (K,)."""
        ready, mean = self.history.ready, self.history.mean
        overall = torch.where(ready, mean, 0.0).sum() / ready.sum().clamp(min=1)
        return torch.where(ready & (overall > 0), overall / mean, 1.0).clamp(max=LARGEST_FACTOR)

    def weight(self, sigma: Tensor) -> Tensor:
        """Return sigma^2 times the factor of the interval in which ``sigma`` lies."""
        return sigma * sigma * self.factors()[self.history.interval(self.process.time(sigma))].to(sigma.dtype)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "sigma_squared": SigmaSquared,
    "diffusion_squared": DiffusionSquared,
    "log_variance": LogVariance,
}


def weighting_options() -> dict[str, Option]:
    """Return the options of the section ``training`` that choose a weighting, and those of all weightings."""
    found = {"weighting": Option(one_of(WEIGHTINGS).annotation | None, required=False)}
    for weighting in WEIGHTINGS.values():
        found |= options_of(weighting, leave_out=NOT_OPTIONS)
    return found


def create_weighting(training: Mapping[str, Any], process: Process, history: LossHistory | None = None) -> Weighting:
    """Build the weighting that ``training.weighting`` names, or where it is null ``training.likelihood_weighting``.

    Args:
        training: the section ``training`` of a configuration.
        process: the process.
        history: moments of the loss, for a weighting that follows them; None for new ones.

    Raises:
        InputError: for an unknown name, an option out of range, or two weightings.
    """
    known = weighting_options()
    check_section({key: value for key, value in training.items() if key in known}, known, "training")
    chosen, likelihood = training.get("weighting"), training["likelihood_weighting"]
    if chosen is not None and likelihood:
        raise InputError(
            f"training.weighting={chosen} and training.likelihood_weighting={likelihood}, that is g^2: choose one"
        )
    name = chosen or ("diffusion_squared" if likelihood else "sigma_squared")
    return call_with(WEIGHTINGS[name], {"process": process, "history": history or LossHistory()}, training)

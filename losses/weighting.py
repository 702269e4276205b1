"""Weights of the squared error of the score by noise level."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sde import Process
from utils.errors import InputError
from utils.options import Option, call_with, check_section, one_of, options_of


class Weighting(Protocol):
    """A weight of the squared error of the score, as a function of the noise level; implementations derive from it."""

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


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {"sigma_squared": SigmaSquared, "diffusion_squared": DiffusionSquared}


def weighting_options() -> dict[str, Option]:
    """Return the options of the section ``training`` that choose a weighting, and those of all weightings."""
    found = {"weighting": Option(one_of(WEIGHTINGS).annotation | None, required=False)}
    for weighting in WEIGHTINGS.values():
        found |= options_of(weighting, leave_out=("process",))
    return found


def create_weighting(training: Mapping[str, Any], process: Process) -> Weighting:
    """Build the weighting that ``training.weighting`` names, or where it is null ``training.likelihood_weighting``.

    Args:
        training: the section ``training`` of a configuration.
        process: the process.

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
    return call_with(WEIGHTINGS[name], {"process": process}, training)

"""Weights of the squared error of the score by noise level."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sde import Process


class Weighting(Protocol):
    """A weight of the squared error of the score, as a function of the noise level."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the weights at noise levels ``sigma``, positive, in their shape."""


@dataclass(frozen=True)
class SigmaSquared:
    """The weight sigma^2, for images: every noise level has an error of the same order."""

    def weight(self, sigma: Tensor) -> Tensor:
        """Return sigma^2."""
        return sigma * sigma


@dataclass(frozen=True)
class DiffusionSquared:
    """The weight g^2, for likelihood: the loss is then the diffusion term of the variational bound.

    Args:
        process: diffusion process with the diffusion coefficient g.
    """

    process: Process

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the square of the diffusion coefficient where the noise level is ``sigma``."""
        g = self.process.diffusion_at(sigma)
        return g * g

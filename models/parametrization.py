"""Parametrizations of the score: conversions of the raw output of a network to a score.

A parametrization is a frozen object with two methods: ``scale_input(x, sigma)``, the input of the network for noisy
data ``x``, and the call ``(raw, x, sigma) -> score``. To add one, derive from ``Parametrization`` and add a line to
``PARAMETRIZATIONS``; its fields are options of ``model``.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from utils.options import check_section, options_of


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape noise levels (B,) to (B, 1, ...), so that they broadcast against ``like`` (B, ...)."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Parametrization:
    """Base class, in which the input of the network is ``x`` itself; a subclass defines the conversion to a score.

    Attributes:
        vanishes_at_faces: whether the component of the score normal to a face of the cube is 0 there for every network.
    """

    vanishes_at_faces: ClassVar[bool] = False

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the input of the network for noisy data ``x`` (B, ...) at noise levels ``sigma`` (B,)."""
        return x

    def __call__(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the score.

        Args:
            raw: output of the network, float32 or wider, (B, ...).
            x: noisy data, (B, ...).
            sigma: noise levels, (B,).

        Returns:
            Estimate of d/dx log p_sigma(x), (B, ...).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class OutputParametrization(Parametrization):
    """The published parametrization: score = F(x, sigma) / sigma for a network F.

    Attributes:
        scale_by_sigma: division by sigma; False: the score is the output F itself.
    """

    scale_by_sigma: bool = True

    def __call__(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """See ``Parametrization``."""
        return raw / expand(sigma, raw) if self.scale_by_sigma else raw


@dataclass(frozen=True)
class EDM(Parametrization):
    """Preconditioning of EDM (Karras et al. 2022, table 1), around the centre m = 1/2 of data in [0, 1].

    The network F predicts a mixture of data and noise of unit variance, from which the denoiser is

        D(x, sigma) = m + c_skip (x - m) + c_out F(m + c_in (x - m), sigma),
        c_skip = s^2 / (sigma^2 + s^2),  c_out = sigma s / sqrt(sigma^2 + s^2),  c_in = 1 / sqrt(sigma^2 + s^2),

    and score = (D - x) / sigma^2. Zero output is the exact score of data N(m, s^2) under the plain VE process, without
    reflections. The networks embed sigma by themselves, in place of the table's c_noise.

    Attributes:
        sigma_data: standard deviation s of the data, in the units of x. The paper's 0.5 is for data in [-1, 1].
    """

    sigma_data: Annotated[float, Field(gt=0, le=10**6)] = 0.5

    def __post_init__(self) -> None:
        check_section(vars(self), options_of(EDM), "model")

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See ``Parametrization``; the centre stays 1/2, because the networks expect data around 1/2."""
        return 0.5 + (x - 0.5) / self._total(x, sigma)

    def __call__(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """See ``Parametrization``."""
        # (D - x) / sigma^2 written out: D and x agree in most digits at small sigma.
        total = self._total(x, sigma)
        return (self.sigma_data * raw / expand(sigma, x) - (x - 0.5) / total) / total

    def _total(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the standard deviation of x, sqrt(sigma^2 + sigma_data^2), (B, 1, ...)."""
        return torch.sqrt(expand(sigma, x).square() + self.sigma_data**2)


PARAMETRIZATIONS: dict[str, type[Parametrization]] = {"output": OutputParametrization, "edm": EDM}

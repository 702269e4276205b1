"""Parametrizations of the score: conversions of the raw output of a network to a score.

A parametrization is a frozen object with two methods: ``scale_input(x, sigma)``, the input of the network for noisy
data ``x``, and the call ``(raw, x, sigma) -> score``. To add one, derive from ``Parametrization`` and add a line to
``PARAMETRIZATIONS``; its fields but ``process`` are options of ``model``.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sde import Process, heat_kernel
from utils.options import check_section, options_of

DATA_STD = 0.5  # a of the kernel parametrizations: the largest standard deviation of values in [0, 1]
FACE_RANGE = 4.0  # distances from the faces, in units of sigma, up to which KernelWithFaces tells them apart
LOG_WIDTH = 2.0  # minus the logarithm of the initial width of KernelWithWidth, in units of sigma


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape noise levels (B,) to (B, 1, ...), so that they broadcast against ``like`` (B, ...)."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Parametrization:
    """Base class, in which the input of the network is ``x`` itself; a subclass defines the conversion to a score.

    Attributes:
        num_inputs: inputs of the network for each value of the data, stacked along its first axis.
        num_outputs: raw outputs for each value of the data; the network stacks them along its first axis.
        vanishes_at_faces: whether the component of the score normal to a face of the cube is 0 there for every network;
            such a score is for processes on the cube only.
    """

    num_inputs: ClassVar[int] = 1
    num_outputs: ClassVar[int] = 1
    vanishes_at_faces: ClassVar[bool] = False

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the input of the network for noisy data ``x`` (B, ...) at noise levels ``sigma`` (B,).

        It has ``num_inputs`` times the first axis of ``x``, and in its first part values around 1/2.
        """
        return x

    def __call__(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the score.

        Args:
            raw: output of the network, float32 or wider, (B, ...), with ``num_outputs`` times the first axis of x.
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


@dataclass(frozen=True)
class Kernel(Parametrization):
    """The score of the reflected kernel from a denoised point: zero normal component at the faces, whatever the output.

    For a network F, with m = 1/2 and a = ``DATA_STD``,

        score = d/dx log p_sigma(x | D),   D = m + c_skip (x - m) + c_out F(m + c_in (x - m), sigma),
        c_skip = a^2 / (sigma^2 + a^2),    c_out = sigma a / sqrt(sigma^2 + a^2),    c_in = sqrt(12),

    where p_sigma is the transition density of the reflected process. The kernel is even and of period 2 in D, so D may
    have any value. docs/method.md derives it and shows that every score has exactly one D in [0, 1].
    """

    vanishes_at_faces: ClassVar[bool] = True

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See ``Parametrization``; the prior, uniform on [0, 1], gets unit variance."""
        return 0.5 + math.sqrt(12.0) * (x - 0.5)

    def __call__(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """See ``Parametrization``."""
        return heat_kernel.score_towards(x, _offset(raw, x, expand(sigma, x)), sigma)


@dataclass(frozen=True)
class KernelWithWidth(Kernel):
    """The score of the reflected kernel from a reflected Gaussian around a denoised point.

    ``Kernel`` at noise level sqrt(sigma^2 + tau^2) in place of sigma, with a second output G for each value:

        tau = sigma exp(G(x, sigma) - 2).

    By the semigroup property of the kernel it is the exact score if, given the other coordinates, the data are a
    reflected Gaussian of width tau around D: an atom has tau = 0, a density that is smooth up to a face a large tau.
    """

    num_outputs: ClassVar[int] = 2

    def __call__(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """See ``Parametrization``."""
        location, log_width = raw.chunk(2, dim=1)
        level = expand(sigma, x)
        # sqrt(1 + (tau / sigma)^2), without overflow
        widening = torch.exp(0.5 * torch.nn.functional.softplus(2.0 * (log_width - LOG_WIDTH)))
        return heat_kernel.score_towards(x, _offset(location, x, level), level * widening)


@dataclass(frozen=True)
class KernelWithFaces(KernelWithWidth):
    """``KernelWithWidth`` of a network that is told the distances from the faces in units of sigma.

    Values on a face are an atom, of which the noise leaves a half Gaussian of width sigma. To point back to it the
    network needs to know the distance d from the face with an error well below sigma, which the coordinate itself does
    not show at small sigma. Beside each coordinate it gets t / sqrt(1 + (t / 4)^2), t = d / sigma, for the faces below
    and above (``Process.face_distances``).

    Args:
        process: process, whose faces they are.
    """

    num_inputs: ClassVar[int] = 3

    process: Process

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See ``Parametrization``."""
        inputs = [super().scale_input(x, sigma)]
        for distance in self.process.face_distances(x):
            t = distance / expand(sigma, x)
            inputs.append(t / torch.sqrt(1.0 + (t / FACE_RANGE).square()))
        return torch.cat(inputs, 1)


def _offset(raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Return D - x of ``Kernel``, without the rounding of D, which would be divided by sigma^2."""
    total = torch.sqrt(sigma.square() + DATA_STD**2)
    return sigma / total * (DATA_STD * raw - sigma / total * (x - 0.5))


PARAMETRIZATIONS: dict[str, type[Parametrization]] = {
    "output": OutputParametrization,
    "edm": EDM,
    "kernel": Kernel,
    "kernel_width": KernelWithWidth,
    "kernel_faces": KernelWithFaces,
}

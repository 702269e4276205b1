"""The protocol of a diffusion process, and what its implementations share: noise schedule, elementwise motion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field
from torch import Generator, Tensor

from utils.errors import InputError
from utils.options import check_section, options_of

NoiseLevel = Annotated[float, Field(gt=0, le=10**6)]


class Process(Protocol):
    """A process x_t, t in [0, 1], that turns data into noise: kernel, noise schedule, domain and prior.

    The process has no drift: dx = sqrt(d sigma^2 / dt) dw, with what keeps it in its domain. Losses, samplers and
    likelihoods see a process through these methods only. x and x0 have shape (B, ...); t has shape (B,).

    Attributes:
        sigma_min, sigma_max: noise levels at t = 0 and t = 1, in units of the data, which lie in [0, 1].
        num_scales: default number of steps of the predictor-corrector sampler.
        prior_sigma: noise level above which the marginal distribution is the prior to within what a sampler with few
            steps can resolve, so that it starts there; at most sigma_max.
        bounded: True if x_t is confined to [0, 1]; False if it moves in all of space.
        elementwise: True if each coordinate moves by itself; False if the domain ties them together.
        prior_name: the distribution of the prior in a word or two, for reports.
    """

    bounded: ClassVar[bool]
    elementwise: ClassVar[bool]
    prior_name: ClassVar[str]

    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    @property
    def num_scales(self) -> int: ...
    @property
    def prior_sigma(self) -> float: ...

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at times ``t``, in their shape."""

    def diffusion(self, t: Tensor) -> Tensor:
        """Return the diffusion coefficient g at times ``t``, g^2 = d sigma^2 / dt, in their shape."""

    def diffusion_at(self, sigma: Tensor) -> Tensor:
        """Return the diffusion coefficient g where the noise level is ``sigma``, in its shape."""

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time at which the noise level is ``sigma``, in its shape; the inverse of ``sigma(t)``."""

    def sample(self, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
        """Draw x_t given ``x0``, (B, ...), from one generator or from one for each of the B points."""

    def sample_pair(
        self, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x_t as ``sample`` does, and return with it ``x0`` with its coordinates arranged as those of x_t are."""

    def conditional_score(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Return d/dx log p(x_t = x | x0), elementwise: the regression target of training.

        ``x`` and ``x0`` are from ``sample_pair``: the mean of the result given x is the score of the process at x.
        """

    def log_density(self, x: Tensor, x0: Tensor, t: Tensor | float) -> Tensor:
        """Return log p(x_t = x | x0), elementwise; ``x`` and ``x0`` broadcast, ``t`` is of shape (B,) or a number.

        ``x`` and ``x0`` are arranged as in ``sample_pair``.
        """

    def expected_log_density(self, x0: Tensor, t: float) -> Tensor:
        """Return E[log p(x_t | x0)] over x_t given ``x0``, elementwise."""

    def kl_to_prior(self, x0: Tensor) -> Tensor:
        """Return E[log p(x_1 | x0)] less the log density of the prior, elementwise, in nats.

        It is the Kullback-Leibler divergence of x_1 given ``x0`` from the prior, except where points are arranged.
        """

    def prior_sample(
        self,
        shape: tuple[int, ...],
        generator: Generator | Sequence[Generator] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw starting points of a sampler, of ``shape`` (B, ...), from one generator or from one for each."""

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density of the prior at ``x`` (B, ...), (B,)."""

    def project(self, y: Tensor) -> Tensor:
        """Return the point of the domain that ``y`` stands for: the result of a step, or coordinates unfolded."""

    def pushforward(self, y: Tensor, v: Tensor) -> Tensor:
        """Return J ``v``, J the derivative of ``project`` at ``y`` (B, ...): vectors at y as vectors at project(y).

        ``v`` is (B, ...), or (K, B or 1, ...) for K vectors at each point; so is the result, or has B in place of 1.
        J is orthogonal.
        """

    def pullback(self, y: Tensor, s: Tensor) -> Tensor:
        """Return J^T ``s``: for the gradient ``s`` of a function at project(y), that of its composition with project.

        The shapes are those of ``pushforward``, of which it is the inverse.
        """

    def face_distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances of each coordinate of ``x`` (B, ...) from the face below and from that above it."""

    def check_data(self, data: Tensor, levels: int | None) -> None:
        """Raise InputError unless ``data`` (N, *shape), of a number of grey levels or None, are of the domain."""


@dataclass(frozen=True)
class GeometricSchedule:
    """The noise levels sigma(t) = sigma_min (sigma_max / sigma_min)^t, t in [0, 1] (Song et al. 2021).

    Args:
        sigma_min: noise level at t = 0.
        sigma_max: noise level at t = 1.
        num_scales: default number of steps of the predictor-corrector sampler.

    Raises:
        InputError: unless 0 < sigma_min < sigma_max < infinity and num_scales is a positive integer.
    """

    sigma_min: NoiseLevel
    sigma_max: NoiseLevel
    num_scales: Annotated[int, Field(ge=1, le=10**6)] = 1000

    def __post_init__(self) -> None:
        check_section(vars(self), options_of(type(self)), "sde")
        if self.sigma_min >= self.sigma_max:
            raise InputError(
                f"sde.sigma_min={self.sigma_min} and sde.sigma_max={self.sigma_max}: need sigma_min < sigma_max"
            )

    @property
    def log_ratio(self) -> float:
        """Return ln(sigma_max / sigma_min)."""
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise level at times ``t``, in their shape."""
        return self.sigma_min * torch.exp(t * self.log_ratio)

    def diffusion(self, t: Tensor) -> Tensor:
        """Return g(t) = sigma(t) sqrt(2 ln(sigma_max / sigma_min)), in the shape of ``t``: g^2 = d sigma^2 / dt."""
        return self.diffusion_at(self.sigma(t))

    def diffusion_at(self, sigma: Tensor) -> Tensor:
        """Return the diffusion coefficient g where the noise level is ``sigma``, in its shape."""
        return sigma * math.sqrt(2.0 * self.log_ratio)

    def time(self, sigma: Tensor) -> Tensor:
        """Return the time at which the noise level is ``sigma``, in its shape; the inverse of ``sigma(t)``."""
        return torch.log(sigma / self.sigma_min) / self.log_ratio

    def _sigma_of(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Return the noise level at ``t``, of shape (B,) or a number, in a shape that broadcasts against ``x``."""
        t = torch.as_tensor(t, device=x.device) if isinstance(t, Tensor) else x.new_tensor(t)
        sigma = self.sigma(t).to(x.dtype)
        return sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma


class ElementwiseProcess(GeometricSchedule):
    """Base of the processes that move each coordinate by itself: what ``Process`` says of arrangements and vectors.

    A subclass whose ``project`` mirrors coordinates overrides ``fold_sign``.
    """

    elementwise: ClassVar[bool] = True

    def sample(self, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
        """See ``Process``."""
        raise NotImplementedError

    def sample_pair(
        self, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x_t given ``x0`` (B, ...) at times ``t`` (B,), and return it with ``x0`` itself."""
        return self.sample(x0, t, generator), x0

    def fold_sign(self, y: Tensor) -> Tensor:
        """Return the derivative of ``project`` at ``y`` in each coordinate, 1 or -1, in the shape of ``y``."""
        return torch.ones_like(y)

    def pushforward(self, y: Tensor, v: Tensor) -> Tensor:
        """Return ``v`` times the sign of the fold at ``y``; see ``Process``."""
        return self.fold_sign(y) * v

    def pullback(self, y: Tensor, s: Tensor) -> Tensor:
        """Return ``s`` times the sign of the fold at ``y``; see ``Process``."""
        return self.fold_sign(y) * s

    def face_distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances of the coordinates from 0 and from 1; see ``Process``."""
        return x, 1.0 - x

    def check_data(self, data: Tensor, levels: int | None) -> None:
        """Accept all data in [0, 1]."""

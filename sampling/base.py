"""What every sampler takes and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from utils.checks import OneOf
from utils.errors import InputError

ScoreFn = Callable[[Tensor, Tensor], Tensor]
TRAJECTORY_IMAGES = 8  # how many images a trajectory follows, the first ones of the batch


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Attributes:
        samples: points in [0, 1], in the shape of the start.
        nfe: calls of the score function.
        trajectory: the first ``TRAJECTORY_IMAGES`` points at moments evenly spread over the way, (moments, n, ...), the
            first being the start and the last the samples; None unless ``trajectory`` asked for them.
    """

    samples: Tensor
    nfe: int
    trajectory: Tensor | None = None


class Sampler(Protocol):
    """Carries points of the cube from sigma_max to sigma_min."""

    @property
    def num_steps(self) -> int:
        """How often one call calls ``on_step``."""

    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min.

        Args:
            score_fn: score_fn(x, sigma) with x (B, ...) in the cube and sigma (B,).
            x_init: start, (B, ...) in [0, 1]; usually ``sde.prior_sample``.
            generator: source of the noise, if there is any, on the device of ``x_init``; or one for each of the B
                points, so that none depends on its batch.
            on_step: called ``num_steps`` times on the way, for a progress bar.
        """


def standard_normal(x: Tensor, generator: Generator | Sequence[Generator] | None) -> Tensor:
    """Noise of the shape, type and device of ``x`` (B, ...), from one generator or from one for each of the B."""
    if generator is None or isinstance(generator, Generator):
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    each = zip(x, generator, strict=True)
    return torch.stack([torch.randn(point.shape, dtype=x.dtype, device=x.device, generator=g) for point, g in each])


class Progress:
    """The steps of one call: reports each, and keeps the moments of a trajectory.

    Args:
        num_steps: of the call.
        moments: of the trajectory, at most; 0 for none. There cannot be more than steps and the start.
        x: the start.
        on_step: as the sampler was given it.
    """

    def __init__(self, num_steps: int, moments: int, x: Tensor, on_step: Callable[[], object] | None) -> None:
        self._marks = {round(i * num_steps / (moments - 1)) for i in range(moments)}
        self._on_step = on_step
        self._kept = [x[:TRAJECTORY_IMAGES]] if moments else []

    def step(self, done: int, x: Tensor) -> None:
        """Step number ``done``, counted from 1, has led to ``x``."""
        if done in self._marks:
            self._kept.append(x[:TRAJECTORY_IMAGES])
        if self._on_step is not None:
            self._on_step()

    @property
    def trajectory(self) -> Tensor | None:
        """What ``Samples.trajectory`` says."""
        return torch.stack(self._kept) if self._kept else None


def check_count(key: str, value: object, low: int = 0, optional: bool = False) -> None:
    """Raise InputError, naming ``sampling.KEY``, unless ``value`` is an integer of at least ``low`` (or None)."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InputError(f"sampling.{key}={value}: need an integer, at least {low}{', or null' * optional}")


def check_trajectory(value: object) -> None:
    """Raise InputError unless ``value`` is 0 or at least 2, for a trajectory has a start and an end."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value == 1:
        raise InputError(f"sampling.trajectory={value}: need 0, or an integer of at least 2")


def check_known(key: str, value: object, known: Sequence[str]) -> None:
    """Raise InputError, naming ``sampling.KEY``, unless ``value`` is one of ``known``."""
    OneOf(tuple(known))(f"sampling.{key}", value)

"""The protocol of a sampler, and its result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Generator, Tensor

ScoreFn = Callable[[Tensor, Tensor], Tensor]
TrajectoryLength = Literal[0] | Annotated[int, Field(ge=2)]  # a trajectory has a start and an end
TRAJECTORY_IMAGES = 8  # how many images a trajectory follows, the first ones of the batch


@dataclass(frozen=True)
class Samples:
    """The result of a sampler.

    Attributes:
        samples: points in the domain of the process, [0, 1] for a bounded one, in the shape of the start.
        nfe: number of calls of the score function.
        trajectory: the first ``TRAJECTORY_IMAGES`` points at evenly spaced moments, (moments, n, ...), the first being
            the start and the last the samples; None unless the sampler has the option ``trajectory``.
    """

    samples: Tensor
    nfe: int
    trajectory: Tensor | None = None


class Sampler(Protocol):
    """A solver that carries points from the prior at sigma_max to sigma_min."""

    @property
    def num_steps(self) -> int:
        """Return the number of calls of ``on_step`` in one call."""

    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min.

        Args:
            score_fn: score_fn(x, sigma) with x (B, ...) in the domain of the process and sigma (B,).
            x_init: start, (B, ...); usually ``process.prior_sample``.
            generator: source of the noise, if there is any, on the device of ``x_init``; or one for each of the B
                points, so that no sample depends on its batch.
            on_step: function called ``num_steps`` times, for a progress bar.
        """


@dataclass(frozen=True)
class WithTransformedScore:
    """Base of samplers that run another sampler on a score that ``transform`` makes from the given one.

    Args:
        sampler: sampler to run.
    """

    sampler: Sampler

    def transform(self, score_fn: ScoreFn) -> ScoreFn:
        """Return the score that the sampler is run on."""
        raise NotImplementedError

    @property
    def num_steps(self) -> int:
        """Return the number of steps of the sampler."""
        return self.sampler.num_steps

    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min; see ``Sampler``."""
        return self.sampler(self.transform(score_fn), x_init, generator, on_step)


class StepRecorder:
    """A counter of the steps of one call of a sampler, which also records its trajectory.

    Args:
        num_steps: number of steps of the call.
        moments: number of moments of the trajectory, at most steps and start together; 0 for no trajectory.
        x: start of the flow, (B, ...).
        on_step: function that the sampler was given to report steps.
    """

    def __init__(self, num_steps: int, moments: int, x: Tensor, on_step: Callable[[], object] | None) -> None:
        self._marks = {round(i * num_steps / (moments - 1)) for i in range(moments)}
        self._on_step = on_step
        self._kept = [x[:TRAJECTORY_IMAGES]] if moments else []

    def record(self, step: int, x: Tensor) -> None:
        """Report step number ``step``, counted from 1, which led to ``x``."""
        if step in self._marks:
            self._kept.append(x[:TRAJECTORY_IMAGES])
        if self._on_step is not None:
            self._on_step()

    @property
    def trajectory(self) -> Tensor | None:
        """Return the recorded points, as ``Samples.trajectory``."""
        return torch.stack(self._kept) if self._kept else None

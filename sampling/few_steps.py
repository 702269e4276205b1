"""Deterministic samplers for few evaluations: the probability flow in unfolded coordinates, in steps fixed in advance.

In y with x = reflect(y), the flow is dy/dsigma = -sigma S(y, sigma) = (y - D) / sigma, with S the unfolded score and
D = y + sigma^2 S the point that y heads for (docs/method.md). Steps that hold D exact for a point of the data.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sampling.base import Progress, Samples, ScoreFn, check_count, check_trajectory
from sampling.folding import karras_sigmas, unfolded_score
from sde import ReflectedVE, cube

DEFAULT_STEPS = 20


@dataclass(frozen=True)
class _FewSteps:
    """Fixed steps between ``karras_sigmas``, the same for every image.

    Args:
        sde: the process.
        steps: their number; None for 20.
        trajectory: moments to keep, at most.

    Raises:
        InputError: for a number out of range.
    """

    sde: ReflectedVE
    steps: int | None = None
    trajectory: int = 0

    def __post_init__(self) -> None:
        check_count("steps", self.steps, low=1, optional=True)
        check_trajectory(self.trajectory)

    @property
    def num_steps(self) -> int:
        """Steps of one call."""
        return self.steps or DEFAULT_STEPS

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min (arguments as for ``Sampler``; the flow has no noise)."""
        nfe = 0

        def field(y: Tensor, sigma: float) -> Tensor:
            nonlocal nfe
            nfe += 1
            return unfolded_score(score_fn, y, y.new_full((len(y),), sigma))

        progress = Progress(self.num_steps, self.trajectory, x_init, on_step)
        step = self._stepper(field)
        y = x_init
        for i, (sigma, following) in enumerate(itertools.pairwise(karras_sigmas(self.sde, self.num_steps)), start=1):
            y = step(y, sigma, following)
            progress.step(i, cube.reflect(y))
        return Samples(cube.reflect(y), nfe, progress.trajectory)

    def _stepper(self, field: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float, float], Tensor]:
        """A function that carries y from one noise level to the next, for one call of the sampler."""
        raise NotImplementedError


class Heun(_FewSteps):
    """Heun's method in sigma (Karras et al. 2022, algorithm 1): second order, two evaluations a step."""

    def _stepper(self, field: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float, float], Tensor]:
        def step(y: Tensor, sigma: float, following: float) -> Tensor:
            slope = -sigma * field(y, sigma)
            predicted = y + (following - sigma) * slope
            slope_there = -following * field(predicted, following)
            return y + (following - sigma) * 0.5 * (slope + slope_there)

        return step


class Multistep(_FewSteps):
    """DPM-Solver++(2M) (Lu et al. 2022) for the unfolded flow: second order, one evaluation a step.

    D is continued linearly in -log sigma from the step before, and y heads for it exactly.
    """

    def _stepper(self, field: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float, float], Tensor]:
        before: tuple[Tensor, float] | None = None  # D and sigma of the step before

        def step(y: Tensor, sigma: float, following: float) -> Tensor:
            nonlocal before
            target = y + sigma**2 * field(y, sigma)
            ahead = target
            if before is not None:
                target_before, sigma_before = before
                half = 0.5 * math.log(sigma / following) / math.log(sigma_before / sigma)
                ahead = target + half * (target - target_before)
            before = target, sigma
            return torch.lerp(ahead, y, following / sigma)

        return step

"""Deterministic samplers for few evaluations: the probability flow in unfolded coordinates, in steps fixed in advance.

In y with x = project(y), the flow is dy/dsigma = -sigma S(y, sigma) = (y - D) / sigma, with S the score in unfolded
coordinates and D = y + sigma^2 S the denoised estimate (docs/method.md). Where D is constant, the steps are exact.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sampling.base import Samples, ScoreFn, StepRecorder, TrajectoryLength
from sampling.folding import folded_score, karras_sigmas
from sde import Process
from utils.options import Count

DEFAULT_STEPS = 20


@dataclass(frozen=True)
class _FewSteps:
    """Fixed steps between ``karras_sigmas``, the same for every image.

    Args:
        process: diffusion process.
        steps: number of steps; None for 20.
        trajectory: number of moments to keep, at most; 0 for none.
    """

    process: Process
    steps: Count | None = None
    trajectory: TrajectoryLength = 0

    @property
    def num_steps(self) -> int:
        """Return the number of steps of one call."""
        return self.steps or DEFAULT_STEPS

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min (see ``Sampler``); the flow has no noise."""
        nfe = 0

        def field(y: Tensor, sigma: float) -> Tensor:
            nonlocal nfe
            nfe += 1
            return folded_score(self.process, score_fn, y, y.new_full((len(y),), sigma))

        recorder = StepRecorder(self.num_steps, self.trajectory, x_init, on_step)
        step = self._stepper(field)
        y, sigmas = x_init, karras_sigmas(self.process, self.num_steps)
        for i, (sigma, following) in enumerate(itertools.pairwise(sigmas), start=1):
            y = step(y, sigma, following)
            recorder.record(i, self.process.project(y))
        return Samples(self.process.project(y), nfe, recorder.trajectory)

    def _stepper(self, field: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float, float], Tensor]:
        """Return a function that carries y from one noise level to the next, for one call of the sampler."""
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
    """DPM-Solver++(2M) (Lu et al. 2022) in unfolded coordinates: second order, one evaluation a step.

    D is extrapolated linearly in -log sigma from the step before.
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

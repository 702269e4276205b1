"""Samplers for few evaluations, in steps fixed in advance between the same noise levels for every sample.

The probability flow is dy/dsigma = -sigma S(y, sigma) = (y - D) / sigma in unfolded coordinates y, x = project(y), S
being the score and D = y + sigma^2 S the denoised estimate (docs/method.md). Where D is constant, steps are exact.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor

from sampling.base import Samples, ScoreFn, StepRecorder, TrajectoryLength
from sampling.folding import folded_score, karras_sigmas
from sde import Process
from sde.multistep import multistep_step
from utils.errors import InputError
from utils.options import Count, Positive
from utils.seeds import BatchGenerator

DEFAULT_STEPS = 20
ORDER = 3  # of UniPC
Step = Callable[[Tensor, float, float], Tensor]
Eta = Annotated[float, Field(ge=0, le=4)]
NoiseLevels = Annotated[
    Annotated[tuple[Positive, ...] | list[Positive], Field(min_length=1, max_length=10**6)],
    Field(description="a list of falling noise levels, such as [1, 0.3, 0.1]"),
]


@dataclass(frozen=True)
class _FewSteps:
    """Steps between fixed noise levels.

    Args:
        process: diffusion process.
        steps: number of steps; None for that of ``sigmas``, or 20.
        sigmas: noise levels that the steps start from, falling, in [sigma_min, sigma_max]; the last step ends at
            sigma_min. None for ``karras_sigmas``.
        trajectory: number of moments to keep, at most; 0 for none.

    Raises:
        InputError: for levels that do not fall or that the process does not have, or of another number than ``steps``.
    """

    process: Process
    steps: Count | None = None
    sigmas: NoiseLevels | None = None
    trajectory: TrajectoryLength = 0

    def __post_init__(self) -> None:
        if self.sigmas is None:
            return
        levels = (*self.sigmas, self.process.sigma_min)
        if not self.process.bounded and levels[0] != self.process.sigma_max:
            raise InputError(
                f"sampling.sigmas={list(self.sigmas)}: a process without bounds starts from sde.sigma_max="
                f"{self.process.sigma_max}"
            )
        if levels[0] > self.process.sigma_max or any(a <= b for a, b in itertools.pairwise(levels)):
            raise InputError(
                f"sampling.sigmas={list(self.sigmas)}: need falling noise levels, at most sde.sigma_max="
                f"{self.process.sigma_max} and more than sde.sigma_min={self.process.sigma_min}"
            )
        if self.steps not in (None, len(self.sigmas)):
            raise InputError(f"sampling.steps={self.steps}: sampling.sigmas has {len(self.sigmas)} levels")

    @property
    def num_steps(self) -> int:
        """Return the number of steps of one call."""
        return self.steps or (DEFAULT_STEPS if self.sigmas is None else len(self.sigmas))

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from the first level to sigma_min; see ``Sampler``."""
        nfe = 0

        def counted(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal nfe
            nfe += 1
            return score_fn(x, sigma)

        recorder = StepRecorder(self.num_steps, self.trajectory, x_init, on_step)
        step, y = self._stepper(counted, BatchGenerator(generator)), x_init
        levels = karras_sigmas(self.process, self.num_steps) if self.sigmas is None else self.sigmas
        falling = (*levels[: self.num_steps], self.process.sigma_min)
        for i, (sigma, following) in enumerate(itertools.pairwise(falling), start=1):
            y = step(y, sigma, following)
            recorder.record(i, self.process.project(y))
        return Samples(self.process.project(y), nfe, recorder.trajectory)

    def _stepper(self, score_fn: ScoreFn, noise: BatchGenerator) -> Step:
        """Return a function that carries points from one noise level to the next, for one call of the sampler."""
        raise NotImplementedError


class Heun(_FewSteps):
    """Heun's method in sigma (Karras et al. 2022, algorithm 1): second order, two evaluations a step."""

    def _stepper(self, score_fn: ScoreFn, noise: BatchGenerator) -> Step:
        def slope(y: Tensor, sigma: float) -> Tensor:
            return -sigma * folded_score(self.process, score_fn, y, y.new_full((len(y),), sigma))

        def step(y: Tensor, sigma: float, following: float) -> Tensor:
            before = slope(y, sigma)
            after = slope(y + (following - sigma) * before, following)
            return y + (following - sigma) * 0.5 * (before + after)

        return step


@dataclass(frozen=True)
class Multistep(_FewSteps):
    """DPM-Solver++(2M) and its stochastic form (Lu et al. 2022): second order, one evaluation a step.

    With h = log(sigma / sigma'), D extrapolated linearly in -log sigma from the step before, and k = (1 + eta) h,

        x' = project(exp(-k) x + (1 - exp(-k)) (D + h / (2 h_1) (D - D_1)) + sigma' sqrt(1 - exp(-2 eta h)) z),

    D_1 and h_1 being those of the step before. D is that of points of the domain: the noise z often carries a
    coordinate across a face, where the unfolded D_1 would belong to the mirror image.

    Args:
        eta: noise in units of that of the reversed process: 0 for the flow, 1 for the reversed process itself, whose
            steps are those of ancestral sampling with D extrapolated.
    """

    eta: Eta = 0.0

    def _stepper(self, score_fn: ScoreFn, noise: BatchGenerator) -> Step:
        before: tuple[Tensor, float] | None = None  # D and sigma of the step before

        def step(x: Tensor, sigma: float, following: float) -> Tensor:
            nonlocal before
            target = x + sigma**2 * score_fn(x, x.new_full((len(x),), sigma))
            z = noise.randn_like(x) if self.eta else None
            y = multistep_step(x, target, sigma, following, before, self.eta, z)
            before = target, sigma
            return self.process.project(y)

        return step


class UniPC(_FewSteps):
    """UniPC of order 3 (Zhao et al. 2023): one evaluation a step, which also corrects the step before.

    A step from x at sigma to sigma', h = log(sigma / sigma'), with D = x + sigma^2 score and D_1, D_2 those of the last
    two steps, is

        x' = project(sigma'/sigma x + (1 - sigma'/sigma) (D + sum_j a_j (D_j - D) / r_j)),
        r_j = log(sigma / sigma_j) / h,

    where the a_j make it exact for a D that is a polynomial in log sigma through these points; with one further point
    a = 1/2, as in the paper. The evaluation at x' is a further point, r = 1, with which the same formula corrects x'
    before the next step. The first steps and the last ones use fewer points.
    """

    def _stepper(self, score_fn: ScoreFn, noise: BatchGenerator) -> Step:
        history: list[tuple[Tensor, float]] = []  # D and sigma, the newest first
        before: tuple[Tensor, list[tuple[Tensor, float]]] | None = None  # start of the last step, and what it used
        done = 0

        def step(x: Tensor, sigma: float, following: float) -> Tensor:
            nonlocal before, done
            newest = x + sigma**2 * score_fn(x, x.new_full((len(x),), sigma)), sigma
            if before is not None:
                x = self.process.project(_unipc_step(*before, sigma, newest))
            history.insert(0, newest)
            del history[ORDER:]
            used = history[: self.num_steps - done]
            before, done = (x, used), done + 1
            return self.process.project(_unipc_step(x, used, following))

        return step


def _unipc_step(
    x: Tensor, history: Sequence[tuple[Tensor, float]], following: float, newest: tuple[Tensor, float] | None = None
) -> Tensor:
    """Carry ``x`` from the noise level of the first pair of ``history`` to ``following``, see ``UniPC``.

    Args:
        x: points, (B, ...).
        history: pairs of D, (B, ...), and its noise level, that at ``x`` first.
        following: noise level of the result.
        newest: D and noise level at the end of the step, if the step is a correction.
    """
    (target, sigma), *others = [*history, *([] if newest is None else [newest])]
    h = math.log(sigma / following)
    decay = -math.expm1(-h)
    ratios = [math.log(sigma / level) / h for _, level in others]
    # Means of the powers of the time over the step, weighted by the flow; with one point 1/2, as DPM-Solver++(2M).
    moments = [1.0]
    for k in range(1, len(ratios) + 1):
        moments.append(0.5 if len(ratios) == 1 else 1.0 / decay - k / h * moments[-1])
    ahead = target
    if ratios:
        weights = np.linalg.solve(np.vander(ratios, increasing=True).T, moments[1:])
        for (other, _), ratio, weight in zip(others, ratios, weights, strict=True):
            ahead = ahead + float(weight / ratio) * (other - target)
    return torch.lerp(ahead, x, following / sigma)

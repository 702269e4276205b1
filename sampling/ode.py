"""Sampling by the probability-flow ODE (Song et al. 2021), in which each sample has its own step sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from sampling.base import TRAJECTORY_IMAGES, Samples, ScoreFn, TrajectoryLength
from sampling.dopri5 import REPORTS, SMALLEST_STEP, Step, odeint
from sampling.folding import folded_score
from sde import Process
from utils.errors import InputError
from utils.options import Positive

EXACT_TOLERANCE = 1e-6  # the flow is unstable between two data points: at 1e-5 one sample in 400 ends at another point
NETWORK_TOLERANCE = 1e-5  # that of the published code; the error of a network is far larger


@dataclass(frozen=True)
class ProbabilityFlow:
    """dx = -1/2 g^2 score dt from t = 1 to t = 0, in unfolded coordinates.

    The trajectory runs in y, free in space, with x = project(y) and the score times the sign of the fold. So x never
    leaves the domain, and no mollifier changes the field near its faces (docs/method.md says why this is the flow of
    the reflected process). Every sample has its own step size, from its own error: it does not depend on its batch.

    Args:
        process: diffusion process.
        rtol, atol: tolerances: the root mean square error of a step over the coordinates of a sample is at most
            atol + rtol |y|. None: 1e-6; ``create_sampler`` fills in 1e-5 for a network.
        moll: parameter of the mollifier of the published code (there 200), which multiplies the drift by
            exp((4 - 1 / (x (1 - x))) / moll) in each coordinate: another flow, with other marginals, for reproducing
            its samples; None for no mollifier.
        side_eps: distance from the faces of the start, which is mapped into [side_eps, 1 - side_eps] (in the published
            code 0.01, with its mollifier).
        trajectory: number of moments to keep, at most; 0 for none.

    Raises:
        InputError: for ``moll`` or ``side_eps`` for a process without bounds.
    """

    process: Process
    rtol: Positive | None = None
    atol: Positive | None = None
    moll: Positive | None = None
    side_eps: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    trajectory: TrajectoryLength = 0

    def __post_init__(self) -> None:
        if not self.process.bounded and (self.moll is not None or self.side_eps):
            raise InputError("sampling.moll and sampling.side_eps are for a process on [0, 1]; this one has no bounds")

    @property
    def num_steps(self) -> int:
        """Return the number of calls of ``on_step`` in one call."""
        return REPORTS

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min (see ``Sampler``); the flow has no noise.

        Raises:
            UserError: if the score is not finite.
        """
        per_image = (-1,) + (1,) * (x_init.ndim - 1)
        score = score_fn if self.moll is None else _mollify(score_fn, self.moll)

        def func(s: Tensor, y: Tensor) -> Tensor:
            """Compute dy/ds for the time s = 1 - t, (B,), that runs from the prior to the samples."""
            t = 1.0 - s
            rate = 0.5 * self.process.diffusion(t).square()
            return rate.to(y.dtype).reshape(per_image) * folded_score(self.process, score, y, self.process.sigma(t))

        rtol, atol = self.rtol or EXACT_TOLERANCE, self.atol or EXACT_TOLERANCE
        y = self.side_eps + (1.0 - 2.0 * self.side_eps) * x_init if self.side_eps else x_init
        if not self.trajectory:
            y, evaluations = odeint(func, y, rtol, atol, on_step)
            return Samples(self.process.project(y), int(evaluations.max()))
        marks = torch.linspace(0.0, 1.0, self.trajectory, dtype=torch.float64, device=y.device)
        followed = y[None, :TRAJECTORY_IMAGES].repeat(self.trajectory, *[1] * y.ndim)

        def watch(step: Step) -> None:
            _follow(followed, marks, step, self.process)

        y, evaluations = odeint(func, y, rtol, atol, on_step, watch)
        samples = self.process.project(y)
        followed[-1] = samples[:TRAJECTORY_IMAGES]
        return Samples(samples, int(evaluations.max()), followed)


def _mollify(score_fn: ScoreFn, moll: float) -> ScoreFn:
    """Return the score times exp((4 - 1 / (x (1 - x))) / moll), elementwise."""
    return lambda x, sigma: score_fn(x, sigma) * ((4.0 - 1.0 / (x * (1.0 - x))) / moll).exp()


def _follow(followed: Tensor, marks: Tensor, step: Step, process: Process) -> None:
    """Write the first n samples into ``followed`` (K, n, ...) at each of the K times ``marks`` within ``step``.

    They are interpolated by the cubic Hermite polynomial between both ends of the step.
    """
    n = followed.shape[1]
    t0, t1, y0, y1, dy0, dy1 = (z[:n] for z in (step.t0, step.t1, step.y0, step.y1, step.dy0, step.dy1))
    per_image = (-1,) + (1,) * (y0.ndim - 1)
    for k, mark in enumerate(marks):
        passed = (t0 < mark) & (mark <= t1)
        s = ((mark - t0) / (t1 - t0).clamp(min=SMALLEST_STEP)).to(y0.dtype).reshape(per_image)
        cubic = y0 + s * s * (3 - 2 * s) * (y1 - y0) + s * (1 - s) * ((1 - s) * dy0 - s * dy1)
        followed[k] = torch.where(passed.reshape(per_image), process.project(cubic), followed[k])

"""Sampling by the probability-flow ODE (Song et al. 2021) on the cube, with step sizes of each image's own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sampling.base import TRAJECTORY_IMAGES, Samples, ScoreFn, check_trajectory
from sampling.dopri5 import REPORTS, SMALLEST_STEP, Step, odeint
from sampling.folding import unfolded_score
from sde import ReflectedVE, cube
from utils.errors import InputError


@dataclass(frozen=True)
class ProbabilityFlow:
    """dx = -1/2 g^2 score dt from t = 1 to t = 0, in unfolded coordinates.

    The trajectory runs in y, free in space, with x = reflect(y) and the score turned over where the fold is odd. So x
    never leaves the cube, and no mollifier changes the field near the faces (docs/method.md says why this is the
    reflected flow). Every image has its own step size, from its own error: it does not depend on its neighbours.

    Args:
        sde: the process.
        rtol, atol: error of a step, root mean square over the coordinates of an image, at most atol + rtol |y|.
        moll: None, or the mollifier of the published code, which multiplies the drift by
            exp((4 - 1 / (x (1 - x))) / moll) in each coordinate: another flow, with other marginals, for reproducing
            its pictures (there 200).
        side_eps: the start is brought into [side_eps, 1 - side_eps] (with its mollifier the published code has 0.01).
        trajectory: moments to keep, at most.

    Raises:
        InputError: for a number out of range.
    """

    sde: ReflectedVE
    rtol: float = 1e-6
    atol: float = 1e-6
    moll: float | None = None
    side_eps: float = 0.0
    trajectory: int = 0

    def __post_init__(self) -> None:
        for key in ("rtol", "atol", "moll"):
            value = getattr(self, key)
            if key == "moll" and value is None:
                continue
            if isinstance(value, bool) or not (isinstance(value, int | float) and 0 < value < math.inf):
                raise InputError(f"sampling.{key}={value}: need a positive number{', or null' * (key == 'moll')}")
        if isinstance(self.side_eps, bool) or not (isinstance(self.side_eps, int | float) and 0 <= self.side_eps < 0.5):
            raise InputError(f"sampling.side_eps={self.side_eps}: need a number, at least 0 and below 0.5")
        check_trajectory(self.trajectory)

    @property
    def num_steps(self) -> int:
        """How often one call reports progress."""
        return REPORTS

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min (arguments as for ``Sampler``; the flow has no noise).

        Raises:
            UserError: if the score is not finite.
        """
        per_image = (-1,) + (1,) * (x_init.ndim - 1)

        def field(done: Tensor, y: Tensor) -> Tensor:
            """dy for a unit of the way, at the share ``done`` (B,) of it."""
            t = 1.0 - done
            rate = 0.5 * self.sde.diffusion(t).square()
            slope = rate.to(y.dtype).reshape(per_image) * unfolded_score(score_fn, y, self.sde.sigma(t))
            if self.moll is not None:
                x = cube.reflect(y)
                slope = slope * ((4.0 - 1.0 / (x * (1.0 - x))) / self.moll).exp()
            return slope

        y = self.side_eps + (1.0 - 2.0 * self.side_eps) * x_init if self.side_eps else x_init
        if not self.trajectory:
            y, evaluations = odeint(field, y, self.rtol, self.atol, on_step)
            return Samples(cube.reflect(y), int(evaluations.max()))
        marks = torch.linspace(0.0, 1.0, self.trajectory, dtype=torch.float64, device=y.device)
        followed = y[None, :TRAJECTORY_IMAGES].repeat(self.trajectory, *[1] * y.ndim)
        y, evaluations = odeint(field, y, self.rtol, self.atol, on_step, lambda step: _follow(followed, marks, step))
        samples = cube.reflect(y)
        followed[-1] = samples[:TRAJECTORY_IMAGES]
        return Samples(samples, int(evaluations.max()), followed)


def _follow(followed: Tensor, marks: Tensor, step: Step) -> None:
    """Write into ``followed`` (K, n, ...) where the first n images were when a step led them past each of the K marks.

    On the cubic through both ends of the step with their slopes (Hermite); the samples do not depend on it.
    """
    n = followed.shape[1]
    before, done, y, new = (z[:n] for z in (step.before, step.done, step.y, step.new))
    rise, rise_new = step.rise[:n], step.rise_new[:n]
    per_image = (-1,) + (1,) * (y.ndim - 1)
    for k, mark in enumerate(marks):
        passed = (before < mark) & (mark <= done)
        s = ((mark - before) / (done - before).clamp(min=SMALLEST_STEP)).to(y.dtype).reshape(per_image)
        cubic = y + s * s * (3 - 2 * s) * (new - y) + s * (1 - s) * ((1 - s) * rise - s * rise_new)
        followed[k] = torch.where(passed.reshape(per_image), cube.reflect(cubic), followed[k])

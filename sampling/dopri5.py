"""The solver of Dormand & Prince (1980), orders 5 and 4, in which each sample has its own step sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError

# The last stage is the first one of the next step.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

FIRST_STEP = 0.01  # in t
SMALLEST_STEP = 1e-6  # in t; taken whatever its error, so that a jump of the score at a face cannot stop it
REPORTS = 100  # calls of on_step in one solution


@dataclass(frozen=True)
class Step:
    """A step of each sample; a sample whose step is rejected has ``t1`` equal to ``t0``.

    Attributes:
        t0, t1: times before and after the step, float64 (B,).
        y0, y1: points before and after the step, (B, ...).
        dy0, dy1: slopes before and after the step, times its length, (B, ...).
    """

    t0: Tensor
    t1: Tensor
    y0: Tensor
    y1: Tensor
    dy0: Tensor
    dy1: Tensor


def odeint(
    func: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    rtol: float,
    atol: float,
    on_step: Callable[[], object] | None = None,
    watch: Callable[[Step], object] | None = None,
    parts: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Solve dy/dt = func(t, y) from t = 0 to 1.

    Every sample has its own step size, from its own error: its solution does not depend on its batch.

    Args:
        func: function func(t, y) of times, float64 (B,), and points, (B, ...), with values dy/dt, (B, ...).
        y: start, (B, ...).
        rtol, atol: tolerances: the root mean square error of a step over the coordinates is at most 1 in units of
            atol + rtol |y|.
        on_step: function called ``REPORTS`` times, for a progress bar.
        watch: function called with each step.
        parts: sizes of groups of coordinates that are each held to the tolerance; None for one group.

    Returns:
        The end, (B, ...), and the number of evaluations of ``func`` for each sample, int64 (B,); the largest is the
        number of calls.

    Raises:
        UserError: if ``func`` is not finite.
    """
    per_image = (-1,) + (1,) * (y.ndim - 1)
    t = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    step = torch.full_like(t, FIRST_STEP)
    slope, evaluations, reported = func(t, y), torch.ones_like(t, dtype=torch.int64), 0
    while (left := 1.0 - t).any():
        h = torch.minimum(step, left)
        scale = h.to(y.dtype).reshape(per_image)
        slopes = [slope]
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            new = y + scale * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
            slopes.append(func(t + node * h, new))
        evaluations += (left > 0) * (len(slopes) - 1)

        error = scale * sum(w * k for w, k in zip(ERROR, slopes, strict=True) if w)
        relative = (error / (atol + rtol * torch.maximum(y.abs(), new.abs()))).flatten(1)
        groups = relative.split(list(parts) if parts else relative.shape[1], dim=1)
        norm = torch.stack([group.square().mean(1).sqrt() for group in groups]).amax(0).to(h.dtype)
        if not norm.isfinite().all():
            raise UserError("the score is not finite: try a smaller w, or precision=fp32")
        accepted = (norm <= 1.0) | (h <= SMALLEST_STEP)
        t0, t = t, torch.where(accepted, torch.where(h < left, t + h, 1.0), t)
        if watch is not None:
            watch(Step(t0, t, y, new, scale * slope, scale * slopes[-1]))
        y = torch.where(accepted.reshape(per_image), new, y)
        slope = torch.where(accepted.reshape(per_image), slopes[-1], slope)
        step = (h * (0.9 * norm.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)).clamp(min=SMALLEST_STEP)

        if on_step is not None:
            reached = int(t.min().item() * REPORTS)
            for _ in range(reported, reached):
                on_step()
            reported = reached
    return y, evaluations

"""Removal of the noise of sigma_min that a sampler leaves in its samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from sampling.base import TRAJECTORY_IMAGES, Sampler, Samples, ScoreFn
from sde import Process

PUBLISHED_LEVEL = 1e-5  # noise level that the published denoiser is given: the time at which sampling ends


def posterior_mean(score_fn: ScoreFn, x: Tensor, sigma: float) -> Tensor:
    """Compute E[x0 | x] for small noise: x + sigma^2 score (Tweedie's formula), clipped to the range of the data.

    For the reflected process it is exact where the data are on a face or further than a few sigma from it; between,
    where reflection hides the direction of the noise, the result is up to sigma nearer to the face. ``score_fn`` is
    called once.
    """
    return (x + sigma**2 * score_fn(x, x.new_full((len(x),), sigma))).clamp(0.0, 1.0)


def apply_published_denoiser(net: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    """Denoise samples by the published denoiser, a network that predicts the noise: x - net(x, 1e-5)."""
    return (x - net(x, x.new_full((len(x),), PUBLISHED_LEVEL))).clamp(0.0, 1.0)


@dataclass(frozen=True)
class WithDenoiser:
    """A sampler followed by ``denoise``(score_fn, samples), which calls the score ``nfe`` times.

    The result is projected into the domain of ``process``: a network may leave values out of order.
    """

    sampler: Sampler
    process: Process
    denoise: Callable[[ScoreFn, Tensor], Tensor]
    nfe: int

    @property
    def num_steps(self) -> int:
        """Return the number of steps of the sampler."""
        return self.sampler.num_steps

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Sample, then denoise; see ``Sampler``."""
        out = self.sampler(score_fn, x_init, generator, on_step)
        samples = self.process.project(self.denoise(score_fn, out.samples))
        trajectory = out.trajectory
        if trajectory is not None:
            trajectory = torch.cat([trajectory[:-1], samples[None, :TRAJECTORY_IMAGES]])
        return replace(out, samples=samples, nfe=out.nfe + self.nfe, trajectory=trajectory)

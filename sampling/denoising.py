"""The noise of sigma_min that a sampler leaves, taken out at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from sampling.base import TRAJECTORY_IMAGES, Sampler, Samples, ScoreFn

PUBLISHED_LEVEL = 1e-5  # what the published denoiser is given as its noise level: the time at which sampling ends


def posterior_mean(score_fn: ScoreFn, x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] for small noise: x + sigma^2 score (Tweedie's formula); one call of ``score_fn``.

    Exact where the data are on a face or further than a few sigma from it; between, where the reflected noise has
    forgotten on which side it was, the result is up to sigma nearer to the face.
    """
    return (x + sigma**2 * score_fn(x, x.new_full((len(x),), sigma))).clamp(0.0, 1.0)


def apply_published_denoiser(net: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    """What the published denoiser makes of samples: x - net(x, 1e-5), a network that was trained to see the noise."""
    return (x - net(x, x.new_full((len(x),), PUBLISHED_LEVEL))).clamp(0.0, 1.0)


@dataclass(frozen=True)
class WithDenoiser:
    """A sampler followed by ``denoise``(score_fn, samples), which calls the score ``nfe`` times."""

    sampler: Sampler
    denoise: Callable[[ScoreFn, Tensor], Tensor]
    nfe: int

    @property
    def num_steps(self) -> int:
        """Those of the sampler."""
        return self.sampler.num_steps

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Arguments as for ``Sampler``."""
        out = self.sampler(score_fn, x_init, generator, on_step)
        samples = self.denoise(score_fn, out.samples)
        trajectory = out.trajectory
        if trajectory is not None:
            trajectory = torch.cat([trajectory[:-1], samples[None, :TRAJECTORY_IMAGES]])
        return replace(out, samples=samples, nfe=out.nfe + self.nfe, trajectory=trajectory)

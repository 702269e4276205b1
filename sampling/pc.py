"""Predictor-corrector sampling of the reversed process (Song et al. 2021; Lou & Ermon 2023)."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from sampling.base import Samples, ScoreFn, StepRecorder, TrajectoryLength
from sampling.folding import karras_sigmas
from sde import Process
from utils.errors import InputError
from utils.options import Count, NonNegative
from utils.seeds import BatchGenerator


@dataclass(frozen=True)
class PredictorCorrector:
    """Steps of the reversed process, optionally with Langevin steps between.

    In the time v = sigma^2 the reversed process is dx = score dv + dw. A predictor step from sigma_i to sigma_{i+1}
    adds v score + sqrt(u) z with v = sigma_i^2 - sigma_{i+1}^2, then projects the result into the domain.

    Args:
        process: diffusion process.
        steps: number of predictor steps; None for ``process.num_scales``.
        predictor: rule of these steps. ``euler_maruyama``: u = v, noise levels equidistant in log sigma (in t) from
            sigma_max to sigma_min. ``ancestral``: u = v sigma_{i+1}^2 / sigma_i^2, the exact transition if the data are
            one point, at ``karras_sigmas``: for few steps.
        corrector: rule of the steps between. ``none``; or ``langevin``: before each predictor step, ``n_steps_each``
            steps x + e score + sqrt(2 e) z with e = 2 (snr sigma)^2. This is the rule of Song et al. (2021) with the
            ratio of norms |z| / |score| replaced by sigma, its value for a Gaussian: near t = 1 the score of a bounded
            process vanishes and the ratio diverges, and a norm over the batch makes its samples depend on each other.
        n_steps_each: number of Langevin steps for each predictor step.
        snr: size of a Langevin step, see above.
        denoiser: rule of the last predictor step: ``none``, or ``mean`` for a step without noise.
        boundary: rule at the faces of a bounded domain: None or ``reflect`` for ``process.project``, or ``clip``, which
            moves what lies outside to the nearest face, and which Lou & Ermon (2023) compare with.
        trajectory: number of moments to keep, at most; 0 for none.

    Raises:
        InputError: for ``boundary`` with a process without bounds, or ``clip`` with one that orders its coordinates.
    """

    process: Process
    steps: Count | None = None
    predictor: Literal["euler_maruyama", "ancestral"] = "euler_maruyama"
    corrector: Literal["none", "langevin"] = "none"
    n_steps_each: Annotated[int, Field(ge=0, le=10**9)] = 1
    snr: NonNegative = 0.01
    denoiser: Literal["none", "mean"] = "none"
    boundary: Literal["reflect", "clip"] | None = None
    trajectory: TrajectoryLength = 0

    def __post_init__(self) -> None:
        if self.boundary is not None and not self.process.bounded:
            raise InputError(f"sampling.boundary={self.boundary}: the process has no bounds")
        if self.boundary == "clip" and not self.process.elementwise:
            raise InputError("sampling.boundary=clip: leaves values in [0, 1] but not in order; use reflect or null")

    @property
    def num_steps(self) -> int:
        """Return the number of predictor steps of one call."""
        return self.steps or self.process.num_scales

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min (see ``Sampler``)."""
        n, ancestral = self.num_steps, self.predictor == "ancestral"
        if ancestral:
            sigmas = karras_sigmas(self.process, n)
        else:
            sigmas = self.process.sigma(torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64)).tolist()
        noise_source = BatchGenerator(generator)
        corrections = self.n_steps_each if self.corrector == "langevin" else 0

        def move(x: Tensor, sigma: float, size: float, noise: float) -> Tensor:
            drift = size * score_fn(x, x.new_full((x.shape[0],), sigma))
            if noise:
                drift = drift + noise * noise_source.randn_like(x)
            return (x + drift).clamp(0.0, 1.0) if self.boundary == "clip" else self.process.project(x + drift)

        x = x_init
        recorder = StepRecorder(n, self.trajectory, x, on_step)
        for i, (sigma, following) in enumerate(itertools.pairwise(sigmas), start=1):
            for _ in range(corrections):
                size = 2.0 * (self.snr * sigma) ** 2
                x = move(x, sigma, size, math.sqrt(2.0 * size))
            variance = sigma**2 - following**2
            noise = math.sqrt(variance) * (following / sigma if ancestral else 1.0)
            x = move(x, sigma, variance, 0.0 if i == n and self.denoiser == "mean" else noise)
            recorder.record(i, x)
        return Samples(x, n * (1 + corrections), recorder.trajectory)

"""Predictor-corrector sampling of the reversed reflected process (Lou & Ermon 2023; Song et al. 2021)."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from errors import InputError
from sampling.base import Samples, ScoreFn
from sde import ReflectedVE, cube

BOUNDARIES = {"reflect": cube.reflect, "clip": lambda x: x.clamp(0.0, 1.0)}


def _check(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"sampling.{key}={value}: known are {', '.join(known)}")


@dataclass(frozen=True)
class PredictorCorrector:
    """Euler-Maruyama steps of the reversed process from t = 1 to t = 0, optionally with Langevin steps between.

    The noise levels sigma_0 = sigma_max > ... > sigma_steps = sigma_min are equidistant in log sigma (in t). In
    the clock v = sigma^2 the reversed process is dx = score dv + dw, so a step from sigma_i to sigma_{i+1} adds
    v score + sqrt(v) z with v = sigma_i^2 - sigma_{i+1}^2, then comes back into the cube.

    Args:
        sde: the process.
        steps: predictor steps; None for ``sde.num_scales``.
        predictor: ``euler_maruyama``.
        corrector: ``none``, or ``langevin``: before each predictor step, ``n_steps_each`` steps
            x + e score + sqrt(2 e) z with e = 2 (snr sigma)^2. This is the rule of Song et al. (2021) with the
            ratio of norms |z| / |score| replaced by sigma, its value for a Gaussian: near t = 1 the score
            vanishes and the ratio grows without bound, and a norm taken over a batch ties its images together.
        n_steps_each: Langevin steps for each predictor step.
        snr: size of a Langevin step, see above.
        denoiser: ``none``, or ``mean``: the last predictor step adds no noise.
        boundary: ``reflect`` at the faces, or ``clip`` to them (the thresholding of the published code).

    Raises:
        InputError: for an unknown name or a number out of range.
    """

    sde: ReflectedVE
    steps: int | None = None
    predictor: str = "euler_maruyama"
    corrector: str = "none"
    n_steps_each: int = 1
    snr: float = 0.01
    denoiser: str = "none"
    boundary: str = "reflect"

    def __post_init__(self) -> None:
        _check("predictor", self.predictor, ("euler_maruyama",))
        _check("corrector", self.corrector, ("none", "langevin"))
        _check("denoiser", self.denoiser, ("none", "mean"))
        _check("boundary", self.boundary, tuple(BOUNDARIES))
        if self.steps is not None and not (isinstance(self.steps, int) and self.steps >= 1):
            raise InputError(f"sampling.steps={self.steps}: need a positive integer, or null")
        if not (isinstance(self.n_steps_each, int) and self.n_steps_each >= 0):
            raise InputError(f"sampling.n_steps_each={self.n_steps_each}: need an integer, at least 0")
        if not (isinstance(self.snr, int | float) and 0 <= self.snr < math.inf):
            raise InputError(f"sampling.snr={self.snr}: need a number, at least 0")

    @property
    def num_steps(self) -> int:
        """Predictor steps of one call."""
        return self.steps or self.sde.num_scales

    @torch.no_grad()
    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min (arguments as for ``Sampler``)."""
        n = self.num_steps
        sigmas = self.sde.sigma(torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64)).tolist()
        into_cube = BOUNDARIES[self.boundary]
        corrections = self.n_steps_each if self.corrector == "langevin" else 0

        def move(x: Tensor, sigma: float, size: float, noise: float) -> Tensor:
            drift = size * score_fn(x, x.new_full((x.shape[0],), sigma))
            if noise:
                z = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
                drift = drift + noise * z
            return into_cube(x + drift)

        x = x_init
        for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
            for _ in range(corrections):
                size = 2.0 * (self.snr * sigma) ** 2
                x = move(x, sigma, size, math.sqrt(2.0 * size))
            variance = sigma**2 - following**2
            last = i == n - 1
            x = move(x, sigma, variance, 0.0 if last and self.denoiser == "mean" else math.sqrt(variance))
            if on_step is not None:
                on_step()
        return Samples(x, nfe=n * (1 + corrections))

"""What every sampler takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor

ScoreFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Samples:
    """What a sampler returns: ``samples`` in [0, 1] and the number of calls of the score function."""

    samples: Tensor
    nfe: int


class Sampler(Protocol):
    """Carries points of the cube from sigma_max to sigma_min."""

    @property
    def num_steps(self) -> int:
        """How often one call calls ``on_step``."""

    def __call__(
        self,
        score_fn: ScoreFn,
        x_init: Tensor,
        generator: Generator | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Samples:
        """Carry ``x_init`` from sigma_max to sigma_min.

        Args:
            score_fn: score_fn(x, sigma) with x (B, ...) in the cube and sigma (B,).
            x_init: start, (B, ...) in [0, 1]; usually ``sde.prior_sample``.
            generator: source of the noise, if there is any, on the device of ``x_init``.
            on_step: called ``num_steps`` times on the way, for a progress bar.
        """

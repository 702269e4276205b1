r"""The reflected process on the probability simplex, as sorted points of the unit interval.

A point of the simplex with n + 1 parts is an ordered point 0 <= x_1 <= ... <= x_n <= 1 whose gaps x_1, x_2 - x_1, ...,
1 - x_n are the parts (``datasets.simplex.to_ordered``). The map is linear with determinant 1, and ordered points are a
convex polytope, a part of the cube from which sorting recovers any point of the cube.

**The process is the sorted cube process.** Let y be the reflected process of the cube, started at an ordered x0. The
generator is symmetric in the coordinates, so that x = sort(y) is a Markov process: Brownian motion reflected at
x_i = x_{i+1}, at 0 and at 1. Its transition density is the sum over all arrangements pi of x0,

    p(x | x0) = sum_pi prod_i k(x_i | x0_pi(i)),                                k the kernel of the interval,

the permanent of the matrix k(x_i | x0_j).

**Training needs no permanent.** With the order in which the coordinates of y were sorted, x0 is arranged alike:
x_i = y_pi(i) came from x0'_i = x0_pi(i). Given x, the arrangement pi has the probability prod_i k(x_i | x0_pi(i)) /
p(x | x0), so that

    E[d/dx sum_i log k(x_i | x0'_i) | x] = sum_pi d/dx prod_i k(x_i | x0_pi(i)) / p(x | x0) = d/dx log p(x | x0):

the elementwise score of the kernel is an unbiased target, as it is in the cube (``sample_pair``).

**Densities.** Uniform noise, sorted, has the density n!: the flat Dirichlet law of the parts. A density f of ordered
points is n! times the symmetric density f(sort(y)) / n! of the cube. So the flow, unfolded and unsorted, has the
log density of the ordered points if the prior has log n!, and the variational bound is that of the cube plus log n!.
docs/method.md has the derivations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from sde.reflected_ve import ReflectedVE
from utils.errors import InputError

ROWS_AT_ONCE = 2**16  # of the data, in the check of their order


@dataclass(frozen=True)
class ReflectedSimplex(ReflectedVE):
    """The process of ``ReflectedVE`` with its coordinates sorted; an implementation of ``Process`` for points (B, n).

    The kernel is that of the cube, elementwise, for ``x`` and ``x0`` arranged alike. Equal coordinates, which are parts
    that are 0, stay in the order in which they are. Data with levels are refused: spread over their levels they would
    not stay in order, and the probability of equal coordinates is not that of the cube.

    Args:
        sigma_min: noise level at t = 0, in units of the interval.
        sigma_max: noise level at t = 1, in units of the interval.
        num_scales: default number of steps of the predictor-corrector sampler.

    Raises:
        InputError: unless 0 < sigma_min < sigma_max < infinity and num_scales is a positive integer.
    """

    elementwise: ClassVar[bool] = False
    prior_name: ClassVar[str] = "sorted uniform"

    def sample(self, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
        """Draw x_t given ordered ``x0`` (B, n) at times ``t`` (B,), ordered."""
        return self.sample_pair(x0, t, generator)[0]

    def sample_pair(
        self, x0: Tensor, t: Tensor, generator: Generator | Sequence[Generator] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x_t given ordered ``x0`` (B, n), and return it with ``x0`` in the order in which x_t was sorted."""
        x, order = super().sample(x0, t, generator).sort(dim=-1, stable=True)
        return x, x0.gather(-1, order)

    def kl_to_prior(self, x0: Tensor) -> Tensor:
        """Return E[log p(x_1 | x0)] before sorting less the log density log n! of the prior, elementwise, in nats.

        Each coordinate has the same share of log n!. The sum is negative where x_1 is uniform: the bound on the density
        of an ordered point is that of the cube, in which each of its n! arrangements has its own density, plus log n!.
        """
        return super().kl_to_prior(x0) - math.lgamma(x0.shape[-1] + 1) / x0.shape[-1]

    def prior_sample(
        self,
        shape: tuple[int, ...],
        generator: Generator | Sequence[Generator] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw sorted uniform noise, of ``shape`` (B, n), from one generator or from one for each."""
        return super().prior_sample(shape, generator, device, dtype).sort(-1).values

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density of sorted uniform noise at ``x`` (B, n): log n!, (B,)."""
        return x.new_full((len(x),), math.lgamma(x.shape[-1] + 1))

    def project(self, y: Tensor) -> Tensor:
        """Return the ordered point that ``y`` (B, n) stands for: folded into [0, 1] by reflections, then sorted."""
        return super().project(y).sort(-1).values

    def pushforward(self, y: Tensor, v: Tensor) -> Tensor:
        """Return ``v`` times the sign of the fold at ``y`` (B, n), in the order of project(y); see ``Process``."""
        signed = super().pushforward(y, v)
        return signed.gather(-1, self._order(y).expand_as(signed))

    def pullback(self, y: Tensor, s: Tensor) -> Tensor:
        """Return ``s`` in the order of ``y`` (B, n), times the sign of the fold there; see ``Process``."""
        return super().pullback(y, s.gather(-1, self._order(y).argsort(-1).expand_as(s)))

    def _order(self, y: Tensor) -> Tensor:
        """Return the order in which ``project`` sorts the coordinates of ``y``, int64 (B, n)."""
        return super().project(y).argsort(dim=-1, stable=True)

    def face_distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gaps below and above each coordinate of an ordered ``x`` (B, n): the parts beside it."""
        gaps = torch.diff(x, prepend=torch.zeros_like(x[:, :1]), append=torch.ones_like(x[:, :1]))
        return gaps[:, :-1], gaps[:, 1:]

    def check_data(self, data: Tensor, levels: int | None) -> None:
        """Raise InputError unless ``data`` are continuous, of shape (N, n), and each row is ordered."""
        name = "sde.name=reflected_simplex"
        if data.ndim != 2:
            raise InputError(f"{name} is for vectors, and the samples of the data have shape {tuple(data.shape[1:])}")
        if levels is not None:
            raise InputError(f"{name} is for continuous values, and the data have {levels} levels")
        for start in range(0, len(data), ROWS_AT_ONCE):
            rows = data[start : start + ROWS_AT_ONCE]
            if (falls := ~(rows[:, 1:] >= rows[:, :-1]).all(1)).any():
                number = start + int(falls.int().argmax())
                raise InputError(f"{name} is for values in ascending order, which those of sample {number} are not")

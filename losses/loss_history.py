"""Running moments of the training loss by noise level."""

from collections.abc import Callable

import torch
from torch import Tensor

INTERVALS = 32  # of equal length in t, as in the variational bound
MEMORY = 256  # samples of an interval over which its moments are averaged
WARM_UP = 16  # samples before the moments of an interval are used


class LossHistory:
    """Running mean and mean square of the loss of a sample, in each of K equal intervals of the time t.

    A noise-level sampler or weighting that has one as its attribute ``history`` follows the loss: training updates the
    moments after each step, the same in every process, and saves them in the checkpoints. The losses are those with
    ``Weighting.fixed``, not divided by the density of t. Each interval averages over its own last samples, about
    MEMORY of them, so that an interval of few samples keeps its moments longer.

    Args:
        device: device of the moments and of the losses.
        intervals: number of intervals, K.

    Attributes:
        count: samples seen in each interval, float64 (K,); at least MEMORY counts as MEMORY.
        mean: running mean of the loss in each interval, float64 (K,).
        mean_square: running mean of its square, float64 (K,).
    """

    def __init__(self, device: torch.device | str = "cpu", intervals: int = INTERVALS) -> None:
        self.count, self.mean, self.mean_square = torch.zeros(3, intervals, dtype=torch.float64, device=device)

    def __len__(self) -> int:
        return len(self.count)

    @property
    def ready(self) -> Tensor:
        """Whether an interval has had enough samples for its moments to be used, bool (K,)."""
        return self.count >= WARM_UP

    def interval(self, t: Tensor) -> Tensor:
        """Return the numbers of the intervals that the times ``t`` fall in, int64, in their shape."""
        return (t * len(self)).long().clamp(0, len(self) - 1)

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor, all_reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """Add the losses of a step.

        Args:
            t: times of this process's samples, (B,).
            losses: their losses, (B,).
            all_reduce_sum: function that sums a tensor over the processes, with the same result in each.
        """
        # A masked sum and not index_add, whose order of summation on a GPU changes from run to run.
        inside = self.interval(t) == torch.arange(len(self), device=t.device)[:, None]
        powers = torch.stack([torch.ones_like(losses), losses, losses.square()])[:, None].double()
        added, total, total_square = all_reduce_sum(torch.where(inside, powers, 0.0).sum(2))
        self.count = (self.count + added).clamp(max=MEMORY)
        memory = torch.maximum(self.count, added).clamp(min=1.0)
        self.mean = self.mean + (total - added * self.mean) / memory
        self.mean_square = self.mean_square + (total_square - added * self.mean_square) / memory

    def state_dict(self) -> dict[str, Tensor]:
        """Return the count and the moments of each interval."""
        return {"count": self.count, "mean": self.mean, "mean_square": self.mean_square}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: if it has another number of intervals.
        """
        for name, own in self.state_dict().items():
            if state[name].shape != own.shape:
                raise ValueError(f"the loss history has {tuple(state[name].shape)} intervals, not {len(self)}")
            setattr(self, name, state[name].to(own))

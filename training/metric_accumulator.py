"""Means of the training metrics over the steps between two entries."""

import math
import time

import torch
from torch import Tensor

from losses import NoiseLevelSampler
from sde import Process
from utils.devices import peak_memory
from utils.distributed import Distributed
from utils.errors import TrainingError

QUARTERS = 4


class MetricAccumulator:
    """Means over the steps since the last entry, kept on the device so that a step does not wait for the host.

    The first step that is not finite is recorded with the noise levels of its images.

    Args:
        distributed: this process among those that train together.
        process: the process.
        noise_levels: distribution of the times, whose quartiles divide the losses.
    """

    def __init__(self, distributed: Distributed, process: Process, noise_levels: NoiseLevelSampler) -> None:
        self._distributed = distributed
        inner = torch.arange(1, QUARTERS, device=distributed.device) / QUARTERS
        self._edges = process.sigma(noise_levels.quantile(inner)[0])  # between the quartiles of sigma
        # loss, norm of the gradient, then of each quartile the sum of the losses, then the number of images
        self._sums = torch.zeros(2 + 2 * QUARTERS, dtype=torch.float64, device=distributed.device)
        self._bad = torch.full((3,), math.inf, device=distributed.device)  # step, lowest sigma, minus the highest
        self._steps = self._images = 0
        self._start = time.perf_counter()

    def add(self, step: int, losses: Tensor, sigma: Tensor, grad_norm: Tensor, images: int) -> None:
        """Add the metrics of a step.

        Args:
            step: the number of the step.
            losses: losses of this process's images, (share,).
            sigma: noise levels of this process's images, (share,).
            grad_norm: norm of the gradient of all images.
            images: number of all images.
        """
        whole = torch.stack([losses.sum() / images, grad_norm / self._distributed.world_size])
        of_quartile = torch.bucketize(sigma, self._edges) == torch.arange(QUARTERS, device=sigma.device)[:, None]
        by_quartile = torch.where(of_quartile, losses, 0.0).sum(1)
        self._sums += torch.cat([whole, by_quartile, of_quartile.sum(1)])
        self._steps += 1
        self._images += images
        bad = ~torch.isfinite(losses)
        bad = torch.where(bad.any(), bad, ~torch.isfinite(grad_norm))  # all of them, if only the gradient is bad
        where = torch.where(bad, torch.stack([sigma, -sigma]), math.inf).amin(1)
        found = torch.cat([torch.full_like(where[:1], step), where])
        self._bad = torch.where(bad.any() & self._bad[0].isinf(), found, self._bad)

    def summary(self) -> dict[str, float | list[float | None]]:
        """Return ``loss``, ``grad_norm``, ``images_per_sec``, ``memory_gib`` (the peak) and ``loss_by_sigma``.

        The last is the mean loss of the images in each quartile of sigma, the lowest first; None where there were none.

        Raises:
            TrainingError: if any of the losses or norms was not finite.
        """
        sums = self._distributed.all_reduce_sum(self._sums).tolist()
        loss, grad_norm = sums[0] / self._steps, sums[1] / self._steps
        if not math.isfinite(loss + grad_norm):
            self._fail()
        by_quartile, counts = sums[2 : 2 + QUARTERS], sums[2 + QUARTERS :]
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "images_per_sec": self._images / (time.perf_counter() - self._start),
            "memory_gib": peak_memory(self._distributed.device) / 2**30,
            "loss_by_sigma": [s / n if n else None for s, n in zip(by_quartile, counts, strict=True)],
        }

    def _fail(self) -> None:
        found = self._distributed.all_gather(self._bad)
        step = found[:, 0].min()
        low, high = found[found[:, 0] == step, 1:].amin(0).tolist()
        raise TrainingError(
            f"loss or gradient not finite at step {int(step)}, for images with sigma from {low:.3g} to {-high:.3g}; "
            "the last checkpoint is untouched. Try a lower optim.lr, a longer optim.warmup or a smaller optim.grad_clip"
        )

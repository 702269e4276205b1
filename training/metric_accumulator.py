"""Accumulation of the training metrics over the steps between two entries of metrics.jsonl."""

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
    """Means over the steps since the last entry, summed on the device so that the host does not wait for a step.

    The first step that is not finite is recorded with the noise levels of its images.

    Args:
        distributed: communication with the other processes of the run.
        process: diffusion process.
        noise_levels: distribution of the times, by whose quartiles the losses are grouped.
    """

    def __init__(self, distributed: Distributed, process: Process, noise_levels: NoiseLevelSampler) -> None:
        self._distributed = distributed
        inner = torch.arange(1, QUARTERS, device=distributed.device) / QUARTERS
        self._edges = process.sigma(noise_levels.quantile(inner)[0])  # between the quartiles of sigma
        # Loss, norm of the gradient; sum of the losses in each quartile; number (or weight) of images in each quartile.
        self._sums = torch.zeros(2 + 2 * QUARTERS, dtype=torch.float64, device=distributed.device)
        self._bad = torch.full((3,), math.inf, device=distributed.device)  # step, lowest sigma, minus the highest
        self._steps = self._images = 0
        self._start = time.perf_counter()

    def add(
        self,
        step: int,
        losses: Tensor,
        sigma: Tensor,
        grad_norm: Tensor,
        images: int,
        importance: Tensor | None = None,
    ) -> None:
        """Add the metrics of a step.

        Args:
            step: number of the step.
            losses: losses of this process's images, (share,).
            sigma: noise levels of this process's images, (share,).
            grad_norm: norm of the gradient of the whole batch.
            images: number of images in the whole batch.
            importance: weights of the losses in all means, (share,); None for 1.
        """
        weighted = losses if importance is None else losses * importance
        whole = torch.stack([weighted.sum() / images, grad_norm / self._distributed.world_size])
        of_quartile = torch.bucketize(sigma, self._edges) == torch.arange(QUARTERS, device=sigma.device)[:, None]
        by_quartile = torch.where(of_quartile, weighted, 0.0).sum(1)
        counts = of_quartile if importance is None else torch.where(of_quartile, importance, 0.0)
        self._sums += torch.cat([whole, by_quartile, counts.sum(1)])
        self._steps += 1
        self._images += images
        bad = ~torch.isfinite(losses)
        bad = torch.where(bad.any(), bad, ~torch.isfinite(grad_norm))  # all images, if only the gradient is bad
        where = torch.where(bad, torch.stack([sigma, -sigma]), math.inf).amin(1)
        found = torch.cat([torch.full_like(where[:1], step), where])
        self._bad = torch.where(bad.any() & self._bad[0].isinf(), found, self._bad)

    def summary(self) -> dict[str, float | list[float | None]]:
        """Return ``loss``, ``grad_norm``, ``images_per_sec``, ``memory_gib`` (the peak) and ``loss_by_sigma``.

        ``loss_by_sigma`` is the mean loss in each quartile of sigma, the lowest first; None for one without images.

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

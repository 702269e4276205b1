"""The metric ``energy_distance``: between samples and images of the data set, of their values as vectors."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from datasets import ImageDataset
from evaluation.bpd import load_split
from evaluation.metric import EvaluationInputs, Result, Rows, RowsMetric
from utils.energy_distance import ROWS, combine, distances_within, mean_distances
from utils.errors import InputError

MOST = 10_000  # real images that are compared with, chosen at random with a fixed seed


class EnergyDistance(RowsMetric):
    """Energy distance between the drawn samples and images of the data set.

    It needs no features, and is of samples of any shape.

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        split: split of the data set to compare with, test (held out) or train; of more than ``MOST`` images, so many.

    Raises:
        InputError: naming the key or file at fault.
    """

    name, num_steps = "energy_distance", 1

    def __init__(self, inputs: EvaluationInputs, *, split: Literal["test", "train"]) -> None:
        super().__init__()
        self.split, self.samples, self.per_image = split, inputs.samples, self
        self.samples.check_number(2)
        self.num_images, self.batch_size = self.samples.num_images, ROWS
        self.device = inputs.distributed.device
        images = load_split(inputs.cfg, self.samples.sampler.run, split, inputs.distributed)
        self.available = len(images)
        if self.available < 2:
            raise InputError(f"metrics.energy_distance.split={split}: {self.available} images, need at least 2")
        self._real = _vectors(images).to(self.device)

    def prepare(self, folder: Path) -> None:
        """Draw the samples that are missing, and read all of them."""
        self.samples.prepare(folder)

    def entries(self) -> dict[str, Any]:
        """Return the protocol of the samples."""
        return {"drawn_images": self.samples.protocol}

    @cached_property
    def _drawn(self) -> Tensor:
        return self.samples.in_cube.to(self.device)

    def __call__(self, images: range, on_step: Callable[[], object]) -> Rows:
        """Compute the mean distances of these samples: ``across`` to real images, and ``within`` to other samples."""
        x = self._drawn[images.start : images.stop]
        rows = {"across": mean_distances(x, self._real), "within": distances_within(x, self._drawn)}
        on_step()
        return {name: values.cpu().numpy() for name, values in rows.items()}

    def result(self) -> dict[str, Result]:
        """Estimate the distance; the error is due to the number of samples, not to that of the real images."""
        rows = self.rows()
        other = distances_within(self._real, self._real).mean().item()
        value, error = combine(rows["across"], rows["within"], other)
        protocol = {
            "error_is": f"standard error of {self.num_images} drawn images",
            "drawn": self.num_images,
            "real": f"{self.split}, {len(self._real)} of {self.available} images",
            "norm": "Euclidean, of all values in [0, 1]",
        }
        return {self.name: Result(value, error, protocol)}


def _vectors(images: ImageDataset) -> Tensor:
    """Return the values in [0, 1] of at most ``MOST`` images, float64 (N, D)."""
    data = images.data
    if len(data) > MOST:
        data = data[np.sort(np.random.RandomState(0).permutation(len(data))[:MOST])]
    if images.units is not None:
        return images.normalize(data).flatten(1).double()
    top = 1 if images.levels is None else images.levels - 1
    return data.flatten(1).double() / top

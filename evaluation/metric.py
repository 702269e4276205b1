"""The protocol of a metric, its result, and the inputs that all metrics of an evaluation share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from omegaconf import DictConfig

from utils.distributed import Distributed

if TYPE_CHECKING:
    from evaluation.samples import SampleFeatures, Samples

Rows = dict[str, np.ndarray]
"""Arrays by name, each with one row per image."""


@dataclass(frozen=True)
class Result:
    """The outcome of a metric.

    Attributes:
        value: value of the metric.
        error: uncertainty of the value; None if it is not known.
        protocol: description of how the value was computed; ``error_is`` in it names the kind of error.
    """

    value: float
    error: float | None
    protocol: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the entry of results.json."""
        error = {"error": self.error} if "error_is" in self.protocol else {}
        return {"value": self.value, **error, **self.protocol}


class PerImage(Protocol):
    """Protocol of a computation of numbers for each image, which do not depend on the other images of the batch.

    The images are divided among the processes. Finished batches are stored in the output directory, from which an
    interrupted computation is resumed.

    Attributes:
        name: name of the file NAME.npz that the numbers go to.
        num_images: number of images.
        batch_size: number of images at once.
        num_steps: number of steps that a batch reports.
    """

    name: str
    num_images: int
    batch_size: int
    num_steps: int

    def prepare(self, folder: Path) -> None:
        """Compute the inputs common to all images, with all processes, before the first batch."""

    def entries(self) -> dict[str, Any]:
        """Return entries of results.json about the images, besides the metrics; called after the first result."""

    def __call__(self, images: range, on_step: Callable[[], object]) -> Rows:
        """Compute the rows of the images with these numbers; ``on_step`` moves a progress bar."""


class Metric(Protocol):
    """Protocol of a metric, which accumulates the rows of all images, batch by batch in order, and returns a result.

    Its constructor takes an ``EvaluationInputs`` and its options by name, and raises InputError, naming the key or
    file, if they cannot be used. A line in ``evaluation.registry.METRICS`` and configs/metrics/NAME.yaml register it.
    """

    @property
    def per_image(self) -> PerImage:
        """Computation whose rows the metric accumulates; metrics may share one."""

    def update(self, batch: Rows) -> None:
        """Add the rows of the next images."""

    def result(self) -> dict[str, Result]:
        """Return the result of all images so far, or several results, by name."""


class RowsMetric:
    """Base of metrics that need the rows of all images at once."""

    def __init__(self) -> None:
        self._batches: list[Rows] = []

    def update(self, batch: Rows) -> None:
        """Add the rows of the next images."""
        self._batches.append(batch)

    def rows(self) -> Rows:
        """Return the rows of all images so far."""
        return {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}


@dataclass
class EvaluationInputs:
    """The inputs of all metrics of an evaluation.

    Attributes:
        cfg: configuration of run_eval.py.
        distributed: communication with the other processes of the evaluation.
        hashes: SHA-256 of the files that the results depend on; metrics add theirs.
    """

    cfg: DictConfig
    distributed: Distributed
    hashes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def samples(self) -> "Samples":
        """Samples that the metrics of sample quality share."""
        from evaluation.samples import Samples

        return Samples(self)

    @cached_property
    def features(self) -> "SampleFeatures":
        """Features of the samples that most of these metrics share."""
        from evaluation.samples import SampleFeatures

        return SampleFeatures(self)

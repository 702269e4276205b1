"""The protocol of a metric, and what all metrics of an evaluation share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from omegaconf import DictConfig

from utils.distributed import Distributed

if TYPE_CHECKING:
    from evaluation.samples import Samples

Rows = dict[str, np.ndarray]
"""Arrays by name, each with a row for each of some images."""


@dataclass(frozen=True)
class Result:
    """The outcome of a metric.

    Attributes:
        value: number that the metric is.
        error: uncertainty of the value; None if it is not known.
        protocol: description of how the number was computed; ``error_is`` in it names the kind of error.
    """

    value: float
    error: float | None
    protocol: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the entry of results.json."""
        error = {"error": self.error} if "error_is" in self.protocol else {}
        return {"value": self.value, **error, **self.protocol}


class PerImage(Protocol):
    """A computation that makes some numbers of each image, the same whatever other images are computed with it.

    The processes share the images, and what is done is kept in the output directory, so that it goes on after an
    interruption.

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
        """Compute what all images need, in all processes together, before the first batch."""

    def entries(self) -> dict[str, Any]:
        """Return what results.json says of the images besides the metrics, once there are results."""

    def __call__(self, images: range, on_step: Callable[[], object]) -> Rows:
        """Compute the rows of the images with these numbers; ``on_step`` moves a progress bar."""


class Metric(Protocol):
    """A metric: takes the rows of all images, batch by batch and in order, and makes a result of them.

    Its constructor takes an ``EvaluationInputs`` and its options by name, and raises InputError, naming the key or
    file, if they cannot be used. A line in ``evaluation.registry.METRICS`` and configs/metrics/NAME.yaml make it known.
    """

    @property
    def per_image(self) -> PerImage:
        """The computation whose rows the metric takes; metrics may share one."""

    def update(self, batch: Rows) -> None:
        """Take the rows of the next images."""

    def result(self) -> dict[str, Result]:
        """Return the result, or several by name, of all images so far."""


class RowsMetric:
    """Base of metrics that need the rows of all images at once."""

    def __init__(self) -> None:
        self._batches: list[Rows] = []

    def update(self, batch: Rows) -> None:
        """Take the rows of the next images."""
        self._batches.append(batch)

    def rows(self) -> Rows:
        """Return the rows of all images so far."""
        return {name: np.concatenate([batch[name] for batch in self._batches]) for name in self._batches[0]}


@dataclass
class EvaluationInputs:
    """What the metrics of an evaluation are made from.

    Attributes:
        cfg: configuration of run_eval.py.
        distributed: this process among those that evaluate together.
        hashes: SHA-256 of the files that the results depend on; metrics add theirs.
    """

    cfg: DictConfig
    distributed: Distributed
    hashes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def samples(self) -> "Samples":
        """The samples that metrics of sample quality share."""
        from evaluation.samples import Samples

        return Samples(self)

"""Bits per dimension of a data set, or nats of continuous data, by the probability flow and by the lower bound."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from pydantic import Field
from torch import Tensor

from datasets import ImageDataset, load_configured
from evaluation.elbo import elbo, time_proposal
from evaluation.likelihood import log_likelihood
from evaluation.metric import EvaluationInputs, Result, Rows, RowsMetric
from evaluation.output_dir import write_arrays
from losses import PiecewiseUniform
from models import compile_network, load_pretrained
from sampling.base import ScoreFn
from sampling.dopri5 import REPORTS
from sampling.faces import FaceWidth, resolve_face_width, vanish_at_faces
from sde import create_process
from utils.distributed import Distributed
from utils.errors import InputError
from utils.options import Count, Positive
from utils.seeds import Stream, derived_seed, image_generators

log = logging.getLogger(__name__)

PILOT_IMAGES = 64
GOLDEN = 0.6180339887498949  # golden ratio: its multiples modulo 1 are a low-discrepancy sequence


def load_split(cfg: DictConfig, run: DictConfig, split: str, distributed: Distributed) -> ImageDataset:
    """Load the ``split``, train or test (held out), of the data set of a run; process 0 goes first.

    The location of the images, ``dataroot`` and ``data.root``, is taken from the command line and not from the run.

    Raises:
        InputError: if they are not there, or the process of the run is for others.
    """
    images = distributed.main_first(
        lambda: load_configured(run.data, split == "train", cfg.dataroot, cfg.data.root, cfg.data.held_out)
    )
    images.check_domain(create_process(run.sde))
    return images


class DatasetMetric(RowsMetric, ABC):
    """Base of metrics in bits per dimension, computed by a network for each image of its data set.

    For continuous data they are in nats of a whole sample: minus the log density in the units of the data. A subclass
    computes the rows ``unit``, ``bits`` or ``nats``, and ``evaluations`` of some images, and optionally their terms.

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        name: name of the metric.
        num_steps: number of steps that a batch reports.

    Raises:
        InputError: naming the key or the file at fault.
    """

    def __init__(self, inputs: EvaluationInputs, name: str, num_steps: int) -> None:
        super().__init__()
        cfg, self.distributed = inputs.cfg, inputs.distributed
        self.name, self.num_steps, self.per_image = name, num_steps, self
        self.seed, self.device = cfg.seed, inputs.distributed.device
        self.net, self.run = load_pretrained(
            cfg.load_dir, cfg.eval.ckpt, self.device, cfg.eval.ema, cfg.eval.weights, cfg.max_image_size
        )
        self.net.set_precision(cfg.precision)
        self.sde = create_process(self.run.sde)
        self.split = cfg.eval.split
        self.images = load_split(cfg, self.run, self.split, inputs.distributed)
        available = len(self.images)
        self.num_images = available if cfg.eval.images is None else min(cfg.eval.images, available)
        self.batch_size = cfg.eval.batch_size

    @abstractmethod
    def __call__(self, images: range, on_step: Callable[[], object]) -> Rows:
        """Compute the rows of the images with these numbers."""

    @abstractmethod
    def protocol(self) -> dict[str, object]:
        """Describe how the numbers are computed."""

    def prepare(self, folder: Path) -> None:
        """Compute nothing before the first batch."""

    def entries(self) -> dict[str, Any]:
        """Return no entries of results.json besides those of the result."""
        return {}

    def result(self) -> dict[str, Result]:
        """Average the bits over the images; the error is the standard error of the mean."""
        rows, n = self.rows(), self.num_images
        lengths, evaluations = rows.pop(self.unit), rows.pop("evaluations")
        protocol = {
            "error_is": f"standard error of {n} images",
            "unit": "bits per dimension" if self.unit == "bits" else "nats, minus the log density in units of the data",
            "images": n,
            "split": f"{self.split}, {n} of {len(self.images)} images",
            "labels": self.labels_given(),
            "per_image": f"{self.name}.npz",
            **{f"{term}_term": float(values.mean()) for term, values in rows.items()},
            **self.protocol(),
            "evaluations": {"mean": float(evaluations.mean()), "largest": int(evaluations.max())},
        }
        error = float(lengths.std(ddof=1) / math.sqrt(n)) if n > 1 else None
        return {self.name: Result(float(lengths.mean()), error, protocol)}

    @property
    def unit(self) -> str:
        """Return ``bits`` for data with levels, ``nats`` for continuous data."""
        return "bits" if self.images.levels else "nats"

    def labels_given(self) -> str:
        """Describe what the network is told of an image."""
        if self.net.cond_size:
            return "condition of each sample given"
        return "class of each image given" if self.net.num_classes else "no classes"

    def score_fn(self, images: range) -> ScoreFn:
        """Return the score given the classes or conditions of these images, if the network has one of these."""
        labels = self.images.labels[images.start : images.stop].to(self.device) if self.net.takes_labels else None
        return lambda x, sigma: self.net(x, sigma, labels)

    def dequantize(self, images: range) -> Tensor:
        """Return these images as (k + u) / levels, with u a function of (seed, number of the image)."""
        pixels = self.images.data[images.start : images.stop]
        generators = image_generators(self.seed, images, stream=Stream.DEQUANTIZE)  # the same u on every device
        u = torch.stack([torch.rand(pixels.shape[1:], generator=generator) for generator in generators])
        return self.images.dequantize(pixels, u).to(self.device)

    def normalize(self, images: range) -> Tensor:
        """Return these images as k / (levels - 1)."""
        return self.images.normalize(self.images.data[images.start : images.stop].to(self.device))

    def length(self, log_prob: Tensor, dequantized: bool) -> np.ndarray:
        """Convert natural logarithms of probabilities, or densities if ``dequantized``, (B,), to bits or nats."""
        nats = -log_prob.double().cpu().numpy()
        if self.images.levels is None:
            return nats
        per_dimension = nats / (math.log(2.0) * self.images.data[0].numel())
        return per_dimension + (math.log2(self.images.levels) if dequantized else 0.0)

    def log_jacobian(self, x: Tensor) -> Tensor:
        """Return the log Jacobian of continuous data at their points ``x`` of the cube, float64 (B,)."""
        if self.images.units is None or self.images.levels is not None:
            return x.new_zeros(len(x), dtype=torch.float64)
        return self.images.units.log_jacobian(x)


class FlowBPD(DatasetMetric):
    """Bits per dimension by the probability flow: log2(levels) - log2 p(x) / D, p its density at sigma_min.

    The images are uniformly dequantized, x = (k + u) / levels.

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        divergence: estimate by sign vectors ("hutchinson"), or the exact trace ("exact").
        num_probes: number of sign vectors.
        face_width: width for ``vanish_at_faces``; see ``resolve_face_width``.
        rtol: relative error of a step.
        atol: absolute error of a step.
    """

    def __init__(
        self,
        inputs: EvaluationInputs,
        *,
        divergence: Literal["hutchinson", "exact"],
        num_probes: Annotated[int, Field(ge=1, le=10**4)],
        face_width: FaceWidth,
        rtol: Positive,
        atol: Positive,
    ) -> None:
        super().__init__(inputs, "bpd", REPORTS)
        self.options: dict[str, Any] = {"divergence": divergence, "rtol": rtol, "atol": atol}
        self.num_probes = num_probes
        try:
            self.face_width = resolve_face_width(face_width, self.sde, self.net.parametrization)
        except InputError as error:
            raise InputError(f"metrics.bpd.{error}") from None

    def protocol(self) -> dict[str, object]:
        """Describe how the numbers are computed."""
        trained = "" if self.run.data.dequantize else "; trained on the levels themselves (data.dequantize=False)"
        prior = f"{self.sde.prior_name} at sigma_max={self.sde.sigma_max}"
        return {
            "density": f"of the flow, at sigma_min={self.sde.sigma_min}, {prior}",
            "dequantisation": "none, the data are continuous"
            if self.images.levels is None
            else f"x = (k + u) / {self.images.levels}, u uniform, from (seed, image){trained}",
            "solver": "Dormand-Prince 5(4), step sizes of each image's own, unfolded coordinates",
            "face_width": self.face_width,
            **self.options,
            **({"probes": self.num_probes} if self.options["divergence"] == "hutchinson" else {}),
        }

    def __call__(self, images: range, on_step: Callable[[], object]) -> Rows:
        """Compute ``bits`` and ``evaluations`` of these images."""
        x = self.dequantize(images)
        out = log_likelihood(
            vanish_at_faces(self.score_fn(images), self.face_width),
            self.sde,
            x,
            generator=image_generators(self.seed, images, self.device, Stream.PROBE),
            num_probes=self.num_probes,
            on_step=on_step,
            **self.options,
        )
        lengths = self.length(out.log_prob + self.log_jacobian(x), dequantized=True)
        return {self.unit: lengths, "evaluations": out.evaluations.cpu().numpy()}


class ElboBPD(DatasetMetric):
    """Bits per dimension by the evidence lower bound.

    For a network that was trained on dequantized images it is the bound on their density, otherwise the bound on the
    probability of the grey levels.

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        num_times: number of noise levels of an image.
        importance_sampling: whether the times are drawn from a proposal that is estimated first.
    """

    def __init__(self, inputs: EvaluationInputs, *, num_times: Count, importance_sampling: bool) -> None:
        super().__init__(inputs, "elbo", num_times)
        if inputs.cfg.compile:
            compile_network(self.net)
        self.num_times, self.importance_sampling = num_times, importance_sampling
        self.dequantized = self.run.data.dequantize
        self.proposal: Tensor | None = None

    def prepare(self, folder: Path) -> None:
        """Set the proposal for importance sampling: process 0 estimates it, and a resumed evaluation reads it."""

        def read_or_estimate() -> list[float]:
            path = folder / "proposal.npz"
            if not path.exists():
                log.info("estimating the variance of the bound at each time")
                write_arrays(path, {"proposal": self.estimate_proposal().numpy()})
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["proposal"].tolist()

        if self.importance_sampling:
            proposal = self.distributed.run_on_main(read_or_estimate)
            self.proposal = torch.tensor(proposal, dtype=torch.float64, device=self.device)

    def estimate_proposal(self) -> Tensor:
        """Estimate a proposal for importance sampling from the first images, on the CPU; see ``time_proposal``."""
        pilot = range(min(PILOT_IMAGES, len(self.images)))
        generators = image_generators(self.seed, pilot, self.device, Stream.PILOT)
        return time_proposal(self.score_fn(pilot), self.sde, self.x0(pilot), generators).cpu()

    def x0(self, images: range) -> Tensor:
        """Return these images as the network was trained on them."""
        return self.dequantize(images) if self.dequantized else self.normalize(images)

    def protocol(self) -> dict[str, object]:
        """Describe how the numbers are computed."""
        levels = self.images.levels
        return {
            "bound_on": "density of x"
            if levels is None
            else f"density of x = (k + u) / {levels}, u uniform, from (seed, image)"
            if self.dequantized
            else f"probability of the levels k / {levels - 1}, read at sigma_min={self.sde.sigma_min}",
            "prior_is": f"divergence from {self.sde.prior_name} at sigma_max={self.sde.sigma_max}, computed",
            "times": f"{self.num_times} strata of each image, offsets spread over the images",
            "proposal": "uniform" if self.proposal is None else [round(p, 6) for p in self.proposal.tolist()],
        }

    def __call__(self, images: range, on_step: Callable[[], object]) -> Rows:
        """Compute ``bits``, its terms ``data``, ``diffusion`` and ``prior``, and ``evaluations`` of these images."""
        first = derived_seed(self.seed, Stream.BOUND) / 2**64
        offset = (first + GOLDEN * torch.arange(images.start, images.stop, dtype=torch.float64)) % 1.0
        x0 = self.x0(images)
        bound = elbo(
            self.score_fn(images),
            self.sde,
            x0,
            None if self.dequantized else self.images.levels,
            num_times=self.num_times,
            offset=offset.to(self.device),
            proposal=None if self.proposal is None else PiecewiseUniform(self.proposal),
            generator=image_generators(self.seed, images, self.device, Stream.BOUND),
            on_step=on_step,
        )
        jacobian = self.log_jacobian(x0)
        return {
            self.unit: self.length(bound.log_prob + jacobian, self.dequantized),
            "data": self.length(-bound.data, self.dequantized),
            "diffusion": self.length(-bound.diffusion, False),
            "prior": self.length(-bound.prior, False),
            **({} if self.images.units is None or self.unit == "bits" else {"units": self.length(jacobian, False)}),
            "evaluations": np.full(len(images), bound.nfe),
        }

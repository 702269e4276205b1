"""Bits per dimension of the images of a data set, by the flow and by the bound."""

import math
from collections.abc import Callable

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from datasets import ImageDataset, load_configured
from datasets.loader import dequantize, normalize
from evaluation.elbo import elbo, time_proposal
from evaluation.likelihood import log_likelihood
from losses import PiecewiseUniform
from models import compile_network, load_pretrained
from sampling.base import ScoreFn
from sampling.dopri5 import REPORTS
from sde import create_process
from utils.seeds import Stream, derived_seed, image_generators

PILOT_IMAGES = 64
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are evenly spread however many there are

PerImage = dict[str, np.ndarray]


def load_split(cfg: DictConfig, run: DictConfig, split: str) -> ImageDataset:
    """Images of the data set of a run: ``split`` is train or test (held out).

    Where they are, only the command line says: ``dataroot`` and ``data.root``.

    Raises:
        InputError: if they are not there.
    """
    return load_configured(run.data, split == "train", cfg.dataroot, cfg.data.root)


class _DatasetMetric:
    """A network and the images it is judged on.

    Args:
        cfg: of run_eval.py.
        device: where to compute.

    Raises:
        InputError: naming the key or the file at fault.
    """

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        self.seed, self.device = cfg.seed, device
        self.net, self.run = load_pretrained(cfg.load_dir, cfg.eval.ckpt, device)
        self.net.set_precision(cfg.precision)
        self.sde = create_process(self.run.sde)
        self.images = load_split(cfg, self.run, cfg.eval.split)

    def score_fn(self, images: range) -> ScoreFn:
        """The score given the classes of these images, if the network has classes."""
        labels = self.images.labels[images.start : images.stop].to(self.device) if self.net.num_classes else None
        return lambda x, sigma: self.net(x, sigma, labels)

    def dequantize(self, images: range) -> Tensor:
        """These images, (k + u) / levels with u a function of (seed, number)."""
        pixels = self.images.data[images.start : images.stop]
        generators = image_generators(self.seed, images, stream=Stream.DEQUANTIZE)  # the same u on every device
        u = torch.stack([torch.rand(pixels.shape[1:], generator=generator) for generator in generators])
        return dequantize(pixels, self.images.levels, u).to(self.device)

    def normalize(self, images: range) -> Tensor:
        """These images as k / (levels - 1)."""
        return normalize(self.images.data[images.start : images.stop].to(self.device), self.images.levels)

    def bits(self, log_prob: Tensor, dequantized: bool) -> np.ndarray:
        """Bits per dimension from natural logarithms of probabilities, or of densities of spread images, (B,)."""
        per_dimension = log_prob.double().cpu().numpy() / (math.log(2.0) * self.images.data[0].numel())
        return (math.log2(self.images.levels or 1) if dequantized else 0.0) - per_dimension


class FlowBPD(_DatasetMetric):
    """log2(levels) - log2 p(x) / D for x = (k + u) / levels, p the density of the probability flow at sigma_min."""

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        super().__init__(cfg, device)
        self.options = cfg.metrics.bpd
        self.num_steps = REPORTS

    def protocol(self) -> dict[str, object]:
        """How the numbers come about."""
        trained = "" if self.run.data.dequantize else "; trained on the levels themselves (data.dequantize=False)"
        prior = f"{self.sde.prior_name} at sigma_max={self.sde.sigma_max}"
        return {
            "density": f"of the flow, at sigma_min={self.sde.sigma_min}, {prior}",
            "dequantisation": "none, the data are continuous"
            if self.images.levels is None
            else f"x = (k + u) / {self.images.levels}, u uniform, from (seed, image){trained}",
            "solver": "Dormand-Prince 5(4), step sizes of each image's own, unfolded coordinates",
            **{key: self.options[key] for key in ("divergence", "rtol", "atol")},
            **({"probes": self.options.num_probes} if self.options.divergence == "hutchinson" else {}),
        }

    def __call__(self, images: range, on_step: Callable[[], object]) -> PerImage:
        """``bits`` and ``evaluations`` of these images."""
        out = log_likelihood(
            self.score_fn(images),
            self.sde,
            self.dequantize(images),
            self.options.divergence,
            image_generators(self.seed, images, self.device, Stream.PROBE),
            num_probes=self.options.num_probes,
            rtol=self.options.rtol,
            atol=self.options.atol,
            on_step=on_step,
        )
        return {"bits": self.bits(out.log_prob, dequantized=True), "evaluations": out.evaluations.cpu().numpy()}


class ElboBPD(_DatasetMetric):
    """The evidence lower bound in bits per dimension.

    Of a network that was trained on spread images the bound is that on their density, else that on the probability of
    the grey levels.

    Args:
        proposal: of the times, as ``elbo`` takes it.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, proposal: Tensor | None = None) -> None:
        super().__init__(cfg, device)
        if cfg.compile:
            compile_network(self.net)
        self.times = self.num_steps = cfg.metrics.elbo.num_times
        self.dequantized = self.run.data.dequantize
        self.proposal = None if proposal is None else proposal.to(device)

    def estimate_proposal(self) -> Tensor:
        """Where the bound of the first images has its variance, a ``proposal`` for importance sampling; on the CPU."""
        pilot = range(min(PILOT_IMAGES, len(self.images)))
        generators = image_generators(self.seed, pilot, self.device, Stream.PILOT)
        return time_proposal(self.score_fn(pilot), self.sde, self.x0(pilot), generators).cpu()

    def x0(self, images: range) -> Tensor:
        """These images as the network knows them."""
        return self.dequantize(images) if self.dequantized else self.normalize(images)

    def protocol(self) -> dict[str, object]:
        """How the numbers come about."""
        levels = self.images.levels
        return {
            "bound_on": "density of x"
            if levels is None
            else f"density of x = (k + u) / {levels}, u uniform, from (seed, image)"
            if self.dequantized
            else f"probability of the levels k / {levels - 1}, read at sigma_min={self.sde.sigma_min}",
            "prior_is": f"divergence from {self.sde.prior_name} at sigma_max={self.sde.sigma_max}, computed",
            "times": f"{self.times} strata of each image, offsets spread over the images",
            "proposal": "uniform" if self.proposal is None else [round(p, 6) for p in self.proposal.tolist()],
        }

    def __call__(self, images: range, on_step: Callable[[], object]) -> PerImage:
        """``bits`` and its terms, ``data``, ``diffusion`` and ``prior``, and ``evaluations`` of these images."""
        first = derived_seed(self.seed, Stream.BOUND) / 2**64
        offset = (first + GOLDEN * torch.arange(images.start, images.stop, dtype=torch.float64)) % 1.0
        bound = elbo(
            self.score_fn(images),
            self.sde,
            self.x0(images),
            None if self.dequantized else self.images.levels,
            num_times=self.times,
            offset=offset.to(self.device),
            proposal=None if self.proposal is None else PiecewiseUniform(self.proposal),
            generator=image_generators(self.seed, images, self.device, Stream.BOUND),
            on_step=on_step,
        )
        return {
            "bits": self.bits(bound.log_prob, self.dequantized),
            "data": self.bits(-bound.data, self.dequantized),
            "diffusion": self.bits(-bound.diffusion, False),
            "prior": self.bits(-bound.prior, False),
            "evaluations": np.full(len(images), bound.nfe),
        }

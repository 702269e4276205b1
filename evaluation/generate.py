"""Draws many images from a trained network: each is a function of its own seed, whoever draws it."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from datasets.shape import is_image
from datasets.units import create_units
from evaluation.given import Given, read_given
from evaluation.parts import progress_bar
from models import ScoreModel, compile_network, load_denoiser, load_pretrained
from models.io.hub import local_path, pinned_path
from models.io.run_files import named_checkpoint, pinned_checkpoint
from sampling import Sampler, Samples, create_sampler, guided_score
from sampling.auto import AUTO, read_tuned, resolve_auto, tuned_path
from sampling.denoising import apply_published_denoiser, posterior_mean
from sampling.draw import draw_imputed, draw_samples, group_size
from sampling.guidance import ScoreNetwork
from sampling.images import share_outside, to_array, to_trajectory
from sampling.imputation import STEPS, check_given
from sampling.labels import check_counts, conditions_of, labels_of, resolve_conditions, resolve_labels
from sde import create_process
from utils.distributed import Distributed
from utils.errors import InputError
from utils.guidance_options import GuidanceOptions
from utils.hub_names import on_hub
from utils.options import plain

log = logging.getLogger(__name__)

# Options of the section ``sampling`` that imputation does not have, with the values that say nothing.
NOT_IMPUTED = {"method": "pc", "corrector": "none", "denoiser": "none", "boundary": None, "trajectory": 0}
NOT_IMPUTED |= {"nfe": None, "sigmas": None, "eta": 0}


@dataclass(frozen=True)
class GeneratedBatch:
    """Images that were drawn together.

    Attributes:
        pixels: images, uint8 (N, H, W, C), or other samples, (N, ...), in the units of their data.
        labels: classes of the images, int64 (N,), or conditions, float32 (N, K); None for a network without both.
        trajectory: states of the first images from noise to image, (K, n, ...) of the type of ``pixels``, or None.
        nfe: number of evaluations of the score for each image.
        clipped: share of the values of each image that were outside [0, 1] and are clipped, float32 (N,); zeros for
            other samples.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    trajectory: np.ndarray | None
    nfe: int
    clipped: np.ndarray


class ImageSampler:
    """Draws image number i as a function of (seed, i), from the network that a configuration of run_vis.py names.

    Args:
        cfg: configuration with ``load_dir``, ``eval.ckpt``, ``eval.ema``, ``eval.weights``, ``precision``,
            ``compile``, ``sampling``, ``denoiser_path``, ``label``, ``label_frequencies``, ``cond``, ``w``,
            ``guidance``, ``max_image_size`` and ``seed``; and with ``given``, ``mask`` and ``eval.particles`` if values
            are given.
        device: device to compute on.

    Raises:
        InputError: naming the key or file at fault.
    """

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self.net, self.run = load_pretrained(
            cfg.load_dir, cfg.eval.ckpt, device, cfg.eval.ema, cfg.eval.weights, cfg.max_image_size
        )
        self._prepare(self.net)
        self.sde = create_process(self.run.sde)
        self.is_image, self.units = is_image(self.run.data), create_units(self.run.data)
        names = self.run.data.get("class_names") or ()
        self.guidance = GuidanceOptions(**plain(cfg.guidance))
        if self.guidance.momentum and cfg.sampling.method == "ode":
            raise InputError(
                f"guidance.momentum={self.guidance.momentum} does not go with sampling.method=ode, which repeats steps "
                "that are too long: leave it out"
            )
        w = cfg.w if self.guidance.dir is None else 0.0  # a weaker network is guided away from without labels too
        self.classes = resolve_labels(cfg.label, w, self.net.num_classes, names, self.net.cond_size)
        self.conditions = resolve_conditions(cfg.cond, w, self.net.cond_size)
        self.weak = self._weak()
        self.denoise = self._denoiser()
        self.given = self._given()
        cfg.sampling = self._resolved()
        self.sampler_steps = self._sampler(self.denoise and (lambda x: x)).num_steps
        self.counts = self._class_counts()
        if unread := [] if cfg.w else self.guidance.of_weight:
            log.warning("w=0: nothing is guided, and %s have no effect", ", ".join(unread))

    def num_steps(self, n: int) -> int:
        """Return how many steps a batch of ``n`` images reports."""
        if self.given is None:
            return self.sampler_steps
        groups = math.ceil(n / group_size(self.cfg.eval.particles, self.cfg.eval.batch_size))
        return groups * (self.cfg.sampling.steps or STEPS)

    def __call__(self, images: range, on_step: Callable[[], object] | None = None) -> GeneratedBatch:
        """Draw the images with these numbers, all at once."""
        labels = conditions_of(images, self.conditions) if self.conditions else None
        if labels is None:
            labels = labels_of(images, self.classes, self.net.num_classes, self.cfg.seed, self.counts)
        labels = labels if labels is None else labels.to(self.device)
        out = self._draw(images, labels, on_step)
        pixels = to_array(out.samples, self.is_image, self.units, self.sde.sigma_min)
        return GeneratedBatch(
            pixels if self.given is None else self.given.restore(pixels, images),
            None if labels is None else labels.cpu().numpy(),
            None if out.trajectory is None else to_trajectory(out.trajectory, self.is_image, self.units),
            out.nfe,
            share_outside(out.samples) if self.is_image else np.zeros(len(images), np.float32),
        )

    def _draw(self, images: range, labels: Tensor | None, on_step: Callable[[], object] | None) -> Samples:
        cfg, given, denoise = self.cfg, self.given, self.denoise
        guidance: dict[str, Any] = {"guidance": self.guidance, "weak": self.weak}
        if given is None:
            sampler = self._sampler(denoise and (lambda x: denoise(x, labels)))
            shape = self.net.data_shape
            return draw_samples(
                self.net, self.sde, sampler, shape, images, cfg.seed, labels, cfg.w, on_step, self.device, **guidance
            )
        rows = given.rows(images)
        points, known = given.points[rows].to(self.device), given.points_known[rows].to(self.device)
        sizes = {"particles": cfg.eval.particles, "batch_size": cfg.eval.batch_size}
        steps = cfg.sampling.steps or STEPS
        return draw_imputed(
            self.net,
            self.sde,
            points,
            known,
            images,
            cfg.seed,
            labels,
            cfg.w,
            on_step,
            steps=steps,
            **sizes,
            **guidance,
        )

    def _class_counts(self) -> list[int] | None:
        """Return the frequencies of random classes; None for uniform ones, or no random classes."""
        if self.classes or not self.net.num_classes or self.cfg.label_frequencies == "uniform":
            return None
        counts = check_counts(self.run.data.get("class_counts"), self.net.num_classes)
        if counts is None:
            log.info("label=null: %s has no record of its class frequencies: uniform classes", self.cfg.load_dir)
        return counts

    def _given(self) -> Given | None:
        """Read the values that ``given`` names; None without."""
        path, mask = self.cfg.get("given"), self.cfg.get("mask")
        if path is None:
            if mask is not None:
                raise InputError(f"mask={mask}: say what is known there, given=FILE")
            return None
        for key, value in NOT_IMPUTED.items():
            if self.cfg.sampling[key] != value:
                raise InputError(f"sampling.{key}={self.cfg.sampling[key]} does not go with given={path}: leave it out")
        if self.guidance.momentum:
            raise InputError(f"guidance.momentum={self.guidance.momentum} does not go with given={path}: leave it out")
        given = read_given(path, mask, self.net.data_shape, self.is_image, self.units)
        try:
            check_given(self.sde, given.points, given.points_known)
        except InputError as error:
            raise InputError(f"given={path}: {error}") from None
        return given

    def _resolved(self) -> dict[str, Any]:
        """Return the section ``sampling`` with what ``method=auto`` stands for, so that the output records it."""
        sampling = plain(self.cfg.sampling)
        if sampling["method"] != AUTO:
            return sampling
        run_dir, _ = named_checkpoint(self.cfg.load_dir)
        tuned = read_tuned(run_dir, self.sde)
        resolved = resolve_auto(sampling, tuned)
        method, steps = resolved["method"], resolved["steps"]
        if steps in tuned:
            source = f"{tuned_path(run_dir)}, for {tuned[steps].checkpoint}"
        else:
            numbers = ", ".join(map(str, sorted(tuned)))
            source = f"the default; sampling.tune has found others for {numbers} steps" if tuned else "the default"
        log.info("sampling.method=auto: %s, %d steps, eta %g (%s)", method, steps, resolved["eta"], source)
        return resolved

    def _sampler(self, denoise: Callable[[Tensor], Tensor] | None) -> Sampler:
        return create_sampler(self.cfg.sampling, self.sde, denoise, self.net.parametrization)

    def _denoiser(self) -> Callable[[Tensor, Tensor | None], Tensor] | None:
        """Return the function of samples and labels that ``sampling.denoiser=network`` applies; None for another."""
        if self.cfg.sampling.denoiser != "network":
            return None
        path = self.cfg.denoiser_path
        if path is None:
            raise InputError("sampling.denoiser=network: denoiser_path is missing, a run or the published denoiser")
        net, run, published = load_denoiser(path, self.device, self.cfg.max_image_size)
        self._check_like("denoiser_path", path, net)
        self._prepare(net)
        if published:
            return lambda x, _: apply_published_denoiser(net, x)
        sigma = self.sde.sigma_min
        if not run.sde.sigma_min <= sigma <= run.sde.sigma_max:
            raise InputError(
                f"denoiser_path={path} knows noise from {run.sde.sigma_min} to {run.sde.sigma_max}, not the "
                f"sde.sigma_min={sigma} that is left here"
            )
        return lambda x, labels: posterior_mean(guided_score(net, labels if net.takes_labels else None), x, sigma)

    def _weak(self) -> ScoreNetwork | None:
        """Load the network that ``guidance.dir`` names, to guide away from; None without."""
        path = self.guidance.dir
        if path is None:
            return None
        try:
            limit = self.cfg.max_image_size
            net, run = load_pretrained(path, self.guidance.ckpt, self.device, max_image_size=limit)
        except InputError as error:
            raise InputError(f"guidance.dir={path}: {error}") from None
        self._check_like("guidance.dir", path, net)
        process, own = create_process(run.sde), self.sde
        if type(process) is not type(own):
            raise InputError(f"guidance.dir={path} has sde={run.sde.name}, load_dir={self.run.sde.name}")
        if process.sigma_min > own.sigma_min or process.sigma_max < own.sigma_max:
            raise InputError(
                f"guidance.dir={path} knows noise from {process.sigma_min} to {process.sigma_max}, load_dir from "
                f"{own.sigma_min} to {own.sigma_max}"
            )
        self._prepare(net)
        return lambda x, sigma, labels: net(x, sigma, labels if net.takes_labels else None)

    def _prepare(self, net: ScoreModel) -> None:
        """Set the precision of a network, and compile it, as the options say."""
        net.set_precision(self.cfg.precision)
        if self.cfg.compile:
            compile_network(net)

    def _check_like(self, key: str, path: str, net: ScoreModel) -> None:
        """Raise InputError unless ``net``, from the option ``key``, is for the same data, with these labels or none."""
        if net.data_shape != self.net.data_shape:
            raise InputError(f"{key}={path} is for data of shape {net.data_shape}, load_dir of {self.net.data_shape}")
        if net.num_classes not in (0, self.net.num_classes):
            raise InputError(f"{key}={path} has {net.num_classes} classes, load_dir {self.net.num_classes}")
        if net.cond_size not in (0, self.net.cond_size):
            raise InputError(
                f"{key}={path} has a condition of {net.cond_size} values, load_dir of {self.net.cond_size}"
            )


def pin_models(cfg: DictConfig, distributed: Distributed) -> None:
    """Write to ``cfg`` which checkpoint ``guidance`` names now, and which commit a denoiser on the Hub has.

    Raises:
        InputError: if there is no such checkpoint.
    """

    def find() -> list[Any]:
        return list(pinned_checkpoint(cfg.guidance.dir, cfg.guidance.ckpt, "guidance.ckpt"))

    def find_denoiser() -> str:
        return pinned_path(cfg.denoiser_path, local_path(cfg.denoiser_path))

    if cfg.denoiser_path is not None and on_hub(cfg.denoiser_path):
        cfg.denoiser_path = distributed.run_on_main(find_denoiser)
    if cfg.guidance.dir is not None:
        cfg.guidance.dir, cfg.guidance.ckpt = distributed.run_on_main(find)


def generate_batches(
    sampler: ImageSampler, batches: list[int], batch_size: int, distributed: Distributed
) -> Iterator[tuple[int, GeneratedBatch | None]]:
    """Draw batches of ``batch_size`` images, batch r the images from r batch_size on, with a progress bar.

    Args:
        sampler: sampler of this process.
        batches: numbers of the batches.
        batch_size: number of images in a batch.
        distributed: this process among those that share each batch.

    Yields:
        The number of each batch, and its images in process 0; None in the others.
    """
    share = distributed.local_slice(batch_size)
    num_steps = sampler.num_steps(len(range(batch_size)[share]))
    with progress_bar(distributed, len(batches) * num_steps, "drawing") as bar:
        for r in batches:
            own = range(r * batch_size, (r + 1) * batch_size)[share]
            parts = distributed.gather(sampler(own, bar.update) if own else None)
            yield r, None if parts is None else _joined([part for part in parts if part is not None])


def _joined(parts: list[GeneratedBatch]) -> GeneratedBatch:
    """Join the shares of the processes."""
    return GeneratedBatch(
        np.concatenate([part.pixels for part in parts]),
        None if parts[0].labels is None else np.concatenate([part.labels for part in parts]),
        parts[0].trajectory,
        max(part.nfe for part in parts),
        np.concatenate([part.clipped for part in parts]),
    )

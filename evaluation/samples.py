"""The samples that metrics share, drawn or read once, and their features with the statistics of real images."""

import hashlib
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.bpd import load_split
from evaluation.features import create_features, features_of
from evaluation.generate import ImageSampler, generate_batches
from evaluation.images_dir import arrays_path, missing_batches, save_batch
from evaluation.metric import EvaluationInputs, Rows
from evaluation.output_dir import write_text
from evaluation.read_samples import read_samples
from evaluation.reference import BATCH, Reference, read_statistics, reference_statistics
from models.io.run_files import find_checkpoint
from utils.errors import InputError
from utils.options import plain


class Samples:
    """Generated images or other samples, drawn from a network or read from files.

    Attributes:
        pixels: images, uint8 (N, H, W, C), or other samples, float32 (N, *shape), after ``prepare``.
        num_images: number of samples.
        sampler: network and sampler that the samples are drawn with.
        protocol: description of the samples, after ``prepare``.

    Args:
        inputs: configuration and processes of the evaluation.

    Raises:
        InputError: naming the key or file at fault.
    """

    def __init__(self, inputs: EvaluationInputs) -> None:
        cfg = self.cfg = inputs.cfg
        self.distributed = inputs.distributed
        self.sampler = ImageSampler(cfg, self.distributed.device)
        data = self.sampler.run.data
        self.pixels: np.ndarray | None = None
        self.sha256 = ""
        if cfg.metrics.samples_path is not None:
            if not self.sampler.is_image:
                raise InputError(
                    f"metrics.samples_path={cfg.metrics.samples_path}: {cfg.load_dir} has data.shape="
                    f"{list(data.shape)}, and only images can be read"
                )
            self.pixels = read_samples(Path(cfg.metrics.samples_path), data.image_size, data.num_channels)
            self.sha256 = inputs.hashes["samples_sha256"] = hashlib.sha256(self.pixels.data).hexdigest()
        self.guidance = plain(cfg.guidance)
        if cfg.guidance.dir is not None:
            weak = Path(cfg.guidance.dir)
            weak = weak if weak.is_file() else find_checkpoint(weak, cfg.guidance.ckpt, "guidance.ckpt")
            with weak.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self.guidance["sha256"] = inputs.hashes["guidance_sha256"] = digest
        self.num_images = cfg.metrics.num_images if self.pixels is None else len(self.pixels)
        self.protocol: dict[str, Any] = {}

    @cached_property
    def in_cube(self) -> Tensor:
        """Values of all samples in [0, 1], float64 (N, D), channels first as those of the data; after ``prepare``."""
        assert self.pixels is not None, "prepare was called"
        values = torch.from_numpy(self.pixels).double()
        if self.sampler.is_image:
            values = values.movedim(-1, 1) / 255.0
        elif self.sampler.units is not None:
            values = self.sampler.units.to_cube(values).double()
        return values.flatten(1)

    def check_number(self, fewest: int) -> None:
        """Raise InputError, naming the key at fault, if there are fewer samples than ``fewest``."""
        if self.num_images < fewest:
            path = self.cfg.metrics.samples_path
            key = f"metrics.num_images={self.num_images}" if path is None else f"metrics.samples_path={path}"
            raise InputError(f"{key}: {self.num_images} images, need at least {fewest}")

    def prepare(self, folder: Path) -> None:
        """Draw the samples that are missing, and read all of them; done once, by all processes together."""
        if self.protocol:
            return
        if self.pixels is not None:
            self.protocol = {"source": str(self.cfg.metrics.samples_path), "sha256": self.sha256}
            return
        cfg, folder = self.cfg, folder / "images"
        size = cfg.eval.batch_size
        count = math.ceil(self.num_images / size)

        def find_missing() -> list[int]:
            folder.mkdir(exist_ok=True)
            return missing_batches(folder, count)

        missing = self.distributed.run_on_main(find_missing)
        for r, drawn in generate_batches(self.sampler, missing, size, self.distributed):
            if drawn is not None:
                save_batch(folder, r, drawn, None, each=False)
                write_text(folder / "evaluations", f"{drawn.nfe}\n")
        self.distributed.all_reduce_max(0)  # until all images are written
        batches = [_read_batch(arrays_path(folder, r)) for r in range(count)]
        self.pixels, clipped = (np.concatenate(parts)[: self.num_images] for parts in zip(*batches, strict=True))
        self.protocol = {
            "source": "images/samples_*.npz",
            "seeds": f"image i from ({cfg.seed}, i), i = 0 .. {self.num_images - 1}",
            "label": plain(cfg)["label"],
            "label_frequencies": "uniform" if self.sampler.counts is None else "those of the training data",
            "w": cfg.w,
            "guidance": self.guidance,
            "sampling": plain(cfg.sampling),
            "denoiser_path": cfg.denoiser_path,
            "evaluations": f"{(folder / 'evaluations').read_text().strip()} an image, the slowest of the last batch",
            "rounding": "nearest of 256 levels" if self.sampler.is_image else "none",
            "clipped_share": float(clipped.mean()),  # of the values, which were outside [0, 1]
        }


class SampleFeatures:
    """The computation of the features of the samples.

    Args:
        inputs: configuration, processes and samples of the evaluation.

    Raises:
        InputError: naming the key or file at fault.
    """

    name, num_steps, batch_size = "features", 1, BATCH

    def __init__(self, inputs: EvaluationInputs) -> None:
        cfg = self.cfg = inputs.cfg
        self.distributed, self.samples = inputs.distributed, inputs.samples
        self.num_images = self.samples.num_images
        data = self.samples.sampler.run.data
        self.dataset = str(data.dataset)
        if not self.samples.sampler.is_image:
            raise InputError(f"{cfg.load_dir} has data.shape={list(data.shape)}: no images, which this metric is of")
        if data.num_channels not in (1, 3):
            raise InputError(
                f"{cfg.load_dir} has data.num_channels={data.num_channels}: samples can be measured with 1 or 3"
            )
        weights = cfg.metrics.feature_weights
        self.read_reference: Reference | None = None
        if cfg.metrics.reference is not None:
            dimension = features_of(self.dataset, weights).dimension
            self.read_reference = read_statistics(Path(cfg.metrics.reference), dimension)
            inputs.hashes["reference_sha256"] = self.read_reference.protocol["statistics_sha256"]
        self.features = create_features(self.dataset, weights, self.distributed.device, data.image_size)
        inputs.hashes["features_sha256"] = self.features.sha256

    def check_numbers(self, fewest: int, compared: bool) -> None:
        """Check that there are enough samples and, if they are ``compared``, real images.

        Raises:
            InputError: naming the key at fault, or because the real images are not there.
        """
        self.samples.check_number(fewest)
        if compared and self.read_reference is None and len(self._real) < fewest:
            raise InputError(f"the training images are {len(self._real)}, need at least {fewest}")

    @cached_property
    def _real(self) -> Any:
        return load_split(self.cfg, self.samples.sampler.run, "train", self.distributed)

    @cached_property
    def reference(self) -> Reference:
        """Statistics of the real images: those of ``metrics.reference``, or of the training images, from a cache."""
        if self.read_reference is not None:
            return self.read_reference
        return reference_statistics(self._real, self.dataset, self.features, Path(self.cfg.dataroot) / "statistics")

    def prepare(self, folder: Path) -> None:
        """Draw the images that are missing, and read all images."""
        self.samples.prepare(folder)

    def entries(self) -> dict[str, Any]:
        """Return the protocol of the samples, and that of the real images if a metric used them."""
        how = {"features": self.features.name, "features_sha256": self.features.sha256}
        reference = {"reference": self.reference.protocol} if "reference" in vars(self) else {}
        return {"drawn_images": {**self.samples.protocol, **how}, **reference}

    def __call__(self, images: range, on_step: Callable[[], object]) -> Rows:
        """Compute ``features`` and ``logits`` of these samples."""
        assert self.samples.pixels is not None, "prepare was called"
        features, logits = self.features(self.samples.pixels[images.start : images.stop])
        on_step()
        return {"features": features.numpy(), "logits": logits.numpy()}


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the images of a batch that ``save_batch`` wrote, and the share of the values of each that is clipped."""
    with np.load(path, allow_pickle=False) as arrays:
        pixels = arrays["samples"]
        return pixels, arrays["clipped"] if "clipped" in arrays else np.zeros(len(pixels), np.float32)

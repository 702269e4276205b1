"""The metrics of a run, one after the other, each with the protocol that it was measured by."""

import hashlib
import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from datasets import ImageDataset
from evaluation import sample_quality
from evaluation.bpd import ElboBPD, FlowBPD, load_split
from evaluation.features import Features, create_features, features_of
from evaluation.generate import ImageSampler, generate_batches
from evaluation.images_dir import arrays_path, missing_batches, save_batch
from evaluation.output_dir import write_arrays, write_text
from evaluation.parts import resumable_map
from evaluation.workers import MakeWorker
from utils.errors import InputError
from utils.options import plain

log = logging.getLogger(__name__)

BITS = {"bpd": FlowBPD, "elbo": ElboBPD}
METRICS = (*BITS, *sample_quality.METRICS)


class Evaluation:
    """All that the chosen metrics need, made and checked before the long work.

    Attributes:
        chosen: names of the metrics.
        inputs: hashes of the files that the results depend on.

    Args:
        cfg: of run_eval.py.
        devices: one for each process.
        protocol: what the results begin with.

    Raises:
        InputError: naming the key or file at fault.
    """

    def __init__(self, cfg: DictConfig, devices: list[torch.device], protocol: dict[str, Any]) -> None:
        self.cfg, self.devices = cfg, devices
        self.results: dict[str, Any] = {**protocol, "metrics": {}}
        self.inputs = {"checkpoint_sha256": protocol["checkpoint"]["sha256"]}
        self.chosen = [name for name in METRICS if name in cfg.metrics]
        first = devices[0] if len(devices) == 1 else torch.device("cpu")
        self.workers = {name: BITS[name](cfg, first) for name in self.chosen if name in BITS}
        self.of_quality = {name: dict(cfg.metrics[name]) for name in self.chosen if name in sample_quality.METRICS}
        if self.of_quality:
            self.artist = ImageSampler(cfg, first)
            self.run = self.artist.run
            data = self.run.data
            if data.num_channels not in (1, 3):
                raise InputError(
                    f"{cfg.load_dir} has data.num_channels={data.num_channels}: "
                    f"{', '.join(self.of_quality)} are of images with 1 or 3"
                )
            self.statistics = self._read_statistics(str(data.dataset))
            compared = self.of_quality.keys() != {"inception_score"} and self.statistics is None
            self.real: ImageDataset | None = load_split(cfg, self.run, "train") if compared else None
            self.features: Features = create_features(str(data.dataset), cfg.metrics.feature_weights, devices[0])
            self.samples: np.ndarray | None = None
            if cfg.metrics.samples_path is not None:
                self.samples = sample_quality.read_samples(
                    Path(cfg.metrics.samples_path), data.image_size, data.num_channels
                )
                self.inputs["samples_sha256"] = hashlib.sha256(self.samples.data).hexdigest()
            self.inputs["features_sha256"] = self.features.sha256
            self._check_numbers()

    def _read_statistics(self, dataset: str) -> sample_quality.Reference | None:
        """Read the statistics that ``metrics.reference`` names, in place of the training images."""
        metrics = self.cfg.metrics
        if metrics.reference is None:
            return None
        dimension = features_of(dataset, metrics.feature_weights).dimension
        statistics = sample_quality.read_statistics(Path(metrics.reference), dimension)
        self.inputs["reference_sha256"] = statistics.protocol["statistics_sha256"]
        return statistics

    def _check_numbers(self) -> None:
        """Raise InputError if there are too few images to compare."""
        fewest = 1 + self.of_quality.get("precision_recall", {}).get("neighborhood", 1)
        drawn = self.cfg.metrics.num_images if self.samples is None else len(self.samples)
        key = (
            f"metrics.num_images={drawn}"
            if self.samples is None
            else f"metrics.samples_path={self.cfg.metrics.samples_path}"
        )
        if drawn < fewest:
            raise InputError(f"{key}: {drawn} images, need at least {fewest}")
        if self.real is not None and len(self.real) < fewest:
            raise InputError(f"the training images are {len(self.real)}, need at least {fewest}")

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Measure what is chosen; ``folder``/results.json grows with each metric."""
        for name, worker in self.workers.items():
            self._record(folder, {name: self._bits(folder, name, worker)})
        if self.of_quality:
            self._record(folder, self._quality(folder))
        return self.results

    def _record(self, folder: Path, results: dict[str, Any]) -> None:
        self.results["metrics"] |= results
        write_text(folder / "results.json", json.dumps(self.results, indent=2) + "\n")

    def _bits(self, folder: Path, name: str, worker: FlowBPD | ElboBPD) -> dict[str, Any]:
        make: MakeWorker = BITS[name]
        if isinstance(worker, ElboBPD) and self.cfg.metrics.elbo.importance_sampling:
            proposal = self._proposal(folder, worker)
            worker, make = ElboBPD(self.cfg, worker.device, proposal), partial(ElboBPD, proposal=proposal)
        cfg, available = self.cfg, len(worker.images)
        n = available if cfg.eval.images is None else min(cfg.eval.images, available)
        batch_size = cfg.eval.batch_size
        arrays = resumable_map(folder, name, worker, make, cfg, n, batch_size, self.devices, worker.num_steps)
        bits = arrays.pop("bits")
        evaluations = arrays.pop("evaluations")
        given = "class of each image given" if worker.net.num_classes else "no classes"
        return {
            "value": float(bits.mean()),
            "error": float(bits.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
            "error_is": f"standard error of {n} images",
            "unit": "bits per dimension",
            "images": n,
            "split": f"{cfg.eval.split}, {n} of {available} images",
            "labels": given,
            "per_image": f"{name}.npz",
            **{f"{term}_term": float(values.mean()) for term, values in arrays.items()},
            **worker.protocol(),
            "evaluations": {"mean": float(evaluations.mean()), "largest": int(evaluations.max())},
        }

    def _proposal(self, folder: Path, worker: ElboBPD) -> Tensor:
        """The proposal of an evaluation: made once, for all processes, and the same when it goes on."""
        path = folder / "proposal.npz"
        if not path.exists():
            log.info("looking where the bound has its variance")
            on_first = ElboBPD(self.cfg, self.devices[0]) if worker.device != self.devices[0] else worker
            write_arrays(path, {"proposal": on_first.estimate_proposal().numpy()})
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["proposal"])

    def _quality(self, folder: Path) -> dict[str, Any]:
        cfg = self.cfg
        if self.samples is None:
            pixels, how = self._draw(folder)
        else:
            pixels, how = (
                self.samples,
                {"source": str(cfg.metrics.samples_path), "sha256": self.inputs["samples_sha256"]},
            )

        def look(images: range, on_step: Any) -> dict[str, np.ndarray]:
            features, logits = self.features(pixels[images.start : images.stop])
            on_step()
            return {"features": features.numpy(), "logits": logits.numpy()}

        arrays = resumable_map(
            folder, "features", look, None, cfg, len(pixels), sample_quality.BATCH, self.devices[:1], 1
        )
        features, logits = (torch.from_numpy(arrays[name]) for name in ("features", "logits"))
        how |= {"features": self.features.name, "features_sha256": self.features.sha256}
        real = self.statistics
        if self.real is not None:
            cache = Path(cfg.dataroot) / "statistics"
            real = sample_quality.reference(self.real, str(self.run.data.dataset), self.features, cache)
        results = sample_quality.compute_metrics(features, logits, real, self.of_quality, cfg.seed)
        self.results["drawn_images"] = how
        if real is not None:
            self.results["reference"] = real.protocol
        return results

    def _draw(self, folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """The images to judge, drawn where they are not there yet, and how they came to be."""
        cfg, folder = self.cfg, folder / "images"
        folder.mkdir(exist_ok=True)
        n, size = cfg.metrics.num_images, cfg.eval.batch_size
        rounds = math.ceil(n / size)
        for r, drawn in generate_batches(self.artist, missing_batches(folder, rounds), size, self.devices):
            save_batch(folder, r, drawn, None, each=False)
            write_text(folder / "evaluations", f"{drawn.nfe}\n")
        pixels = np.concatenate([np.load(arrays_path(folder, r))["samples"] for r in range(rounds)])[:n]
        return pixels, {
            "source": "images/samples_*.npz",
            "seeds": f"image i from ({cfg.seed}, i), i = 0 .. {n - 1}",
            "label": plain(cfg)["label"],
            "w": cfg.w,
            "sampling": plain(cfg.sampling),
            "denoiser_path": cfg.denoiser_path,
            "evaluations": f"{(folder / 'evaluations').read_text().strip()} an image, the slowest of the last batch",
            "rounding": "nearest of 256 levels",
        }

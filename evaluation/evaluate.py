"""The metrics of a run, one after the other, each with the protocol that it was measured by."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from datasets import Images
from evaluation import quality
from evaluation.bits import BoundBits, FlowBits, load_split
from evaluation.drawing import Artist, draw_rounds
from evaluation.features import Features, create_features
from evaluation.images_dir import arrays_path, missing_rounds, save_round
from evaluation.output_dir import write_text
from evaluation.parts import of_each

BITS = {"bpd": FlowBits, "elbo": BoundBits}
METRICS = (*BITS, *quality.METRICS)


class Evaluation:
    """All that the chosen metrics need, made and checked before the long work.

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
        self.chosen = [name for name in METRICS if name in cfg.metrics]
        first = devices[0] if len(devices) == 1 else torch.device("cpu")
        self.workers = {name: BITS[name](cfg, first) for name in self.chosen if name in BITS}
        self.of_quality = {name: dict(cfg.metrics[name]) for name in self.chosen if name in quality.METRICS}
        if self.of_quality:
            self.artist = Artist(cfg, first)
            self.run = self.artist.run
            data = self.run.data
            self.real: Images = load_split(cfg, self.run, "train")
            self.features: Features = create_features(str(data.dataset), cfg.metrics.features, devices[0])
            self.samples: np.ndarray | None = None
            if cfg.metrics.samples is not None:
                self.samples = quality.read_samples(Path(cfg.metrics.samples), data.image_size, data.num_channels)

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

    def _bits(self, folder: Path, name: str, worker: FlowBits | BoundBits) -> dict[str, Any]:
        cfg, available = self.cfg, len(worker.images)
        n = available if cfg.eval.images is None else min(cfg.eval.images, available)
        batch_size = cfg.eval.batch_size
        arrays = of_each(folder, name, worker, BITS[name], cfg, n, batch_size, self.devices, worker.num_steps)
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

    def _quality(self, folder: Path) -> dict[str, Any]:
        cfg = self.cfg
        if self.samples is None:
            pixels, how = self._draw(folder)
        else:
            pixels, how = self.samples, {"source": str(cfg.metrics.samples)}

        def look(images: range, on_step: Any) -> dict[str, np.ndarray]:
            features, logits = self.features(pixels[images.start : images.stop])
            on_step()
            return {"features": features.numpy(), "logits": logits.numpy()}

        arrays = of_each(folder, "features", look, None, cfg, len(pixels), quality.BATCH, self.devices[:1], 1)
        features, logits = (torch.from_numpy(arrays[name]) for name in ("features", "logits"))
        how |= {"features": self.features.name, "features_sha256": self.features.sha256}
        real = None
        if self.of_quality.keys() != {"inception_score"}:
            cache = Path(cfg.dataroot) / "statistics"
            real = quality.reference(self.real, str(self.run.data.dataset), self.features, cache)
        results = quality.judge(features, logits, real, self.of_quality, cfg.seed)
        self.results["drawn_images"] = how
        if real is not None:
            self.results["reference"] = real.protocol
        return results

    def _draw(self, folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """The images to judge, drawn where they are not there yet, and how they came to be."""
        cfg, folder = self.cfg, folder / "images"
        folder.mkdir(exist_ok=True)
        n, size = cfg.metrics.drawn, cfg.eval.batch_size
        rounds = math.ceil(n / size)
        for r, drawn in draw_rounds(self.artist, missing_rounds(folder, rounds), size, self.devices):
            save_round(folder, r, drawn, None, each=False)
        pixels = np.concatenate([np.load(arrays_path(folder, r))["samples"] for r in range(rounds)])[:n]
        return pixels, {
            "source": "images/samples_*.npz",
            "seeds": f"image i from ({cfg.seed}, i), i = 0 .. {n - 1}",
            "label": OmegaConf.to_container(cfg)["label"],
            "w": cfg.w,
            "sampling": OmegaConf.to_container(cfg.sampling),
            "rounding": "nearest of 256 levels",
        }

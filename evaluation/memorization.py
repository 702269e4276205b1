"""The metric ``memorization``: are drawn samples nearer to the training data than new data are?"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from datasets import ImageDataset
from evaluation.bpd import load_split
from evaluation.metric import EvaluationInputs, Result, Rows, RowsMetric
from sampling.images import save_grid, to_uint8
from utils.errors import InputError, writing

ROWS = 256  # samples that are compared at once
DATA_AT_ONCE = 16_384  # rows of the data that are compared with at once
PAIRS = 10  # samples in the picture


class Memorization(RowsMetric):
    """Nearest neighbours of the drawn samples in the training and in the held-out data, by Euclidean distance.

    Two numbers tell whether a network repeats its training data:

    - ``memorization``: the share of samples whose nearest training sample is nearer than ``ratio`` times the second
      nearest (Yoon et al. 2023): copies of single images. Data that occur twice are not counted.
    - ``nearer_to_training``: the share of samples that are nearer to training than to held-out data, of the same number
      of each: 1/2 for samples that have no more to do with the one than with the other (Meehan et al. 2020).

    Writes ``memorization.png``, with the samples of the smallest ratio beside their neighbours, if they are images.

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        ratio: see above.

    Raises:
        InputError: naming the key or file at fault.
    """

    name, num_steps, batch_size = "memorization", 1, ROWS

    def __init__(self, inputs: EvaluationInputs, *, ratio: Annotated[float, Field(gt=0, lt=1)]) -> None:
        super().__init__()
        self.ratio, self.samples, self.per_image = ratio, inputs.samples, self
        self.num_images, self.device = self.samples.num_images, inputs.distributed.device
        run = self.samples.sampler.run
        self._train, self._test = (
            load_split(inputs.cfg, run, split, inputs.distributed) for split in ("train", "test")
        )
        for split, images, fewest in (("training", self._train, 2), ("held-out", self._test, 1)):
            if len(images) < fewest:
                raise InputError(f"metrics=[memorization]: {len(images)} {split} samples, need at least {fewest}")
        generator = torch.Generator().manual_seed(inputs.cfg.seed)
        count = min(len(self._train), len(self._test))
        self._subset = torch.randperm(len(self._train), generator=generator)[:count].sort().values
        self._held_out = torch.randperm(len(self._test), generator=generator)[:count].sort().values
        self._folder: Path | None = None

    def prepare(self, folder: Path) -> None:
        """Draw the samples that are missing, and read all of them."""
        self.samples.prepare(folder)
        self._folder = folder

    def entries(self) -> dict[str, Any]:
        """Return the protocol of the samples."""
        return {"drawn_images": self.samples.protocol}

    def __call__(self, images: range, on_step: Callable[[], object]) -> Rows:
        """Compute the neighbours of these samples.

        They are ``nearest`` and ``second``, the two smallest distances to the training data, ``train``, the number of
        the nearest training sample, ``subset`` and ``held_out``, the smallest distances to as many training as held-out
        samples, and ``test``, the number of the nearest held-out sample.
        """
        x = self.samples.in_cube[images.start : images.stop].float().to(self.device)
        distances, numbers = nearest(x, self._train, torch.arange(len(self._train)), 2)
        subset, _ = nearest(x, self._train, self._subset, 1)
        held_out, test = nearest(x, self._test, self._held_out, 1)
        on_step()
        return {
            "nearest": distances[:, 0].cpu().numpy(),
            "second": distances[:, 1].cpu().numpy(),
            "train": numbers[:, 0].cpu().numpy(),
            "subset": subset[:, 0].cpu().numpy(),
            "held_out": held_out[:, 0].cpu().numpy(),
            "test": test[:, 0].cpu().numpy(),
        }

    def result(self) -> dict[str, Result]:
        """Estimate both shares; their errors are binomial. Write the picture."""
        rows = self.rows()
        copies = rows["nearest"] < self.ratio * rows["second"]
        # Of two equal distances neither is nearer.
        nearer = np.where(rows["subset"] == rows["held_out"], 0.5, rows["subset"] < rows["held_out"])
        if self.samples.sampler.is_image and self._folder is not None:
            self._save_picture(rows, self._folder / "memorization.png")
        shared = {
            "drawn": len(copies),
            "training": len(self._train),
            **({} if self._train.uncropped is None else {"training_windows": "the central one of each image"}),
            "norm": "Euclidean, of all values in [0, 1]",
            "distance_to_training": float(rows["subset"].mean()),
            "distance_to_held_out": float(rows["held_out"].mean()),
        }
        error = {"error_is": f"standard error of {len(copies)} drawn images"}
        return {
            self.name: Result(*_share(copies), {**error, **shared, "ratio": self.ratio}),
            "nearer_to_training": Result(*_share(nearer), {**error, **shared, "number_of_each": len(self._held_out)}),
        }

    def _save_picture(self, rows: Rows, path: Path) -> None:
        """Write a row for each sample of the smallest ratios: sample, nearest training and nearest held-out image."""
        assert self.samples.pixels is not None, "prepare was called"
        first = np.argsort(rows["nearest"] / np.maximum(rows["second"], np.finfo(np.float32).tiny), kind="stable")[
            :PAIRS
        ]
        tiles = [
            image
            for i in first
            for image in (
                self.samples.pixels[i],
                _pixels(self._train, int(rows["train"][i])),
                _pixels(self._test, int(rows["test"][i])),
            )
        ]
        with writing(path):
            save_grid(np.stack(tiles), path, columns=3)


def nearest(x: Tensor, images: ImageDataset, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest of some data.

    Args:
        x: samples in the cube, (B, D).
        images: data set.
        numbers: numbers of the samples of the data set to compare with, (M,).
        count: number of neighbours.

    Returns:
        Distances, ascending, (B, count), and numbers in the data set, (B, count).
    """
    best = x.new_full((len(x), count), torch.inf)
    found = torch.full((len(x), count), -1, device=x.device)
    for part in numbers.split(DATA_AT_ONCE):
        real = images.normalize(images.data[part]).flatten(1).to(x)
        distances = torch.cdist(x, real, compute_mode="donot_use_mm_for_euclid_dist")  # exact for equal points
        among = torch.cat([best, distances], 1).topk(count, largest=False)
        every = torch.cat([found, part.to(x.device).expand(len(x), -1)], 1)
        best, found = among.values, every.gather(1, among.indices)
    return best, found


def _share(values: np.ndarray) -> tuple[float, float]:
    share = float(np.mean(values))
    return share, float(np.sqrt(share * (1.0 - share) / len(values)))


def _pixels(images: ImageDataset, number: int) -> np.ndarray:
    """Return an image of a data set, uint8 (H, W, C)."""
    return to_uint8(images.normalize(images.data[[number]]))[0]

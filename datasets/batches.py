"""Batches in an order that is a function of (seed, step)."""

import numpy as np
import torch
from torch import Tensor

from datasets.images import Images


class Batches:
    """Batch ``k`` of an endless stream of shuffled epochs, as a pure function of (seed, k).

    Nothing is kept from one step to the next but a cached permutation, so that a resumed run sees what an
    undisturbed one would. Images live on ``device`` as uint8.

    Args:
        images: the data set.
        batch_size: images in a batch; batches run on across the end of an epoch.
        seed: of the permutations.
        random_flip: mirror each image left to right with probability 1/2 (torch's default generator).
    """

    def __init__(
        self, images: Images, batch_size: int, seed: int, device: torch.device | str, random_flip: bool = False
    ) -> None:
        self.pixels = images.pixels.to(device)
        self.labels = images.labels.to(device)
        self.scale = 1.0 / (images.levels - 1)
        self.batch_size = batch_size
        self.seed = seed
        self.random_flip = random_flip
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Positions in the data set of the images of batch ``step``, int64 (batch_size,)."""
        n = len(self.pixels)
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        pieces = []
        while position < stop:
            epoch, offset = divmod(position, n)
            if epoch != self._epoch:
                self._epoch = epoch
                self._permutation = np.random.default_rng([self.seed, epoch]).permutation(n)
            piece = self._permutation[offset : offset + stop - position]
            pieces.append(piece)
            position += len(piece)
        return np.concatenate(pieces)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Batch ``step``: x0 in [0, 1], float32 (B, C, H, W), and labels, int64 (B,)."""
        index = torch.from_numpy(self.indices(step)).to(self.pixels.device)
        x0 = self.pixels[index].float() * self.scale
        if self.random_flip:
            flip = torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5
            x0 = torch.where(flip, x0.flip(-1), x0)
        return x0, self.labels[index]

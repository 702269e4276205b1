"""Loader in an order that is a function of (seed, step)."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from datasets.images import ImageDataset
from utils.errors import UserError

IN_MEMORY = 2**30  # bytes; a larger data set stays on disk


def normalize(pixels: Tensor, levels: int) -> Tensor:
    """Grey levels k, uint8, as the values k / (levels - 1), float32 in [0, 1]."""
    return pixels * (1.0 / (levels - 1))  # uint8 times a number is float32


def dequantize(pixels: Tensor, levels: int, u: Tensor | None = None) -> Tensor:
    """Grey levels k, uint8, as the values (k + u) / levels, float32 in [0, 1] (uniform dequantisation).

    Args:
        pixels: 0 .. levels - 1.
        u: in [0, 1), in the shape of ``pixels``; drawn uniformly if None.
    """
    u = torch.rand(pixels.shape, device=pixels.device) if u is None else u
    return (pixels + u) * (1.0 / levels)


class Loader:
    """Batch ``k`` of an endless stream of shuffled epochs, as a pure function of (seed, k).

    Nothing is kept from one step to the next but a cached permutation and the batch that comes next, so that a resumed
    run sees what an undisturbed one would. A small data set lives on ``device`` as uint8; a large one is read from its
    file while the step before is computed, and reaches a GPU through pinned memory.

    Args:
        images: the data set.
        batch_size: images in a batch; batches run on across the end of an epoch.
        seed: of the permutations.
        random_flip: mirror each image left to right with probability 1/2 (torch's default generator), on the device.
        dequantize: add uniform noise within each grey level (torch's default generator), see ``dequantize``.
        in_memory: the largest data set, in bytes, that is copied to ``device``.
    """

    def __init__(
        self,
        images: ImageDataset,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        random_flip: bool = False,
        dequantize: bool = False,
        in_memory: int = IN_MEMORY,
    ) -> None:
        self.device = torch.device(device)
        file = None if images.pixels.nbytes <= in_memory else images.file
        self.labels = images.labels.to(self.device)
        self.levels = images.levels
        self.batch_size = batch_size
        self.seed = seed
        self.random_flip, self.dequantize = random_flip, dequantize
        self._count = len(images)
        self._stream = None if file is None else _Stream(images, file, self.device)
        self._pixels = images.pixels.to(self.device, copy=images.file is not None) if file is None else images.pixels
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Positions in the data set of the images of batch ``step``, int64 (batch_size,)."""
        n = self._count
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
        if self._stream is not None:
            index, pixels = self._stream.take(step, self.indices)
            index = self._without_waiting(index)
        else:
            index = self._without_waiting(torch.from_numpy(self.indices(step)))
            pixels = self._pixels.index_select(0, index)
        x0 = dequantize(pixels, self.levels) if self.dequantize else normalize(pixels, self.levels)
        if self.random_flip:
            flip = torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5
            x0 = torch.where(flip, x0.flip(-1), x0)
        return x0, self.labels[index]

    def _without_waiting(self, index: Tensor) -> Tensor:
        """``index`` on the device; a GPU is not waited for, as it would be for memory that is not pinned."""
        return index if self.device.type == "cpu" else index.pin_memory().to(self.device, non_blocking=True)


class _Stream:
    """Reads images from the file of a pack, those of the next step ahead of time.

    By system calls and not through the map: a page that is mapped counts as memory of this process, and its first use
    costs more than the call.
    """

    def __init__(self, images: ImageDataset, file: BinaryIO, device: torch.device) -> None:
        self._images, self._file, self._device = images, file, device
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Tensor, Future[Tensor]] | None = None

    def take(self, step: int, indices: Callable[[int], np.ndarray]) -> tuple[Tensor, Tensor]:
        """The positions and pixels of batch ``step``; that of ``step + 1`` is then on its way."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = self._begin(step, indices)
        _, index, future = self._ahead
        pixels = future.result()
        self._ahead = self._begin(step + 1, indices)
        return index, pixels.to(self._device, non_blocking=True)

    def _begin(self, step: int, indices: Callable[[int], np.ndarray]) -> tuple[int, Tensor, Future[Tensor]]:
        index = torch.from_numpy(indices(step))
        return step, index, self._reader.submit(self._read, index)

    def _read(self, index: Tensor) -> Tensor:
        file, shape = self._file, self._images.pixels.shape[1:]
        pixels = torch.empty(len(index), *shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        rows, size = pixels.flatten(1).numpy(), shape.numel()
        for row, start in zip(rows, (self._images.offset + index * size).tolist(), strict=True):
            if os.preadv(file.fileno(), [row], start) != size:
                raise UserError(f"{file.name} was cut short while it was read")
        return pixels

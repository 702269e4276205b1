"""Batches of a data set in an order that is a function of (seed, step)."""

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


class Loader:
    """A loader of batch ``k`` of an endless stream of shuffled epochs, as a pure function of (seed, k).

    Its only state is a cached permutation and the prefetched next batch, so that a resumed run gets the same batches
    as an uninterrupted one. A small data set is stored on ``device``; a large one is read from its file while the
    previous step is computed, and copied to a GPU through pinned memory.

    Args:
        images: data set.
        batch_size: number of samples in a batch; batches run on across the end of an epoch.
        seed: seed of the permutations.
        device: device of the batches.
        random_flip: whether to mirror each image left to right with probability 1/2 (torch's default generator).
        random_crop: whether to cut a random window of ``images.uncropped``, and not the central one (torch's default
            generator).
        dequantize: whether to add uniform noise within each grey level (torch's default generator).
        in_memory: size in bytes of the largest data set that is copied to ``device``.

    Attributes:
        offset: position of batch 0 in the stream; not 0 in a run whose batch size has changed.

    Raises:
        ValueError: if samples that are no images are to be mirrored.
    """

    def __init__(
        self,
        images: ImageDataset,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        random_flip: bool = False,
        random_crop: bool = False,
        dequantize: bool = False,
        in_memory: int = IN_MEMORY,
    ) -> None:
        if random_flip and not images.is_image:
            raise ValueError(f"random_flip: samples of shape {images.shape} are no images")
        self.device = torch.device(device)
        stored = images.data if images.uncropped is None else images.uncropped
        file = None if stored.nbytes <= in_memory else images.file
        self.labels = images.labels.to(self.device)
        self._images = images
        self.batch_size = batch_size
        self.seed = seed
        self.offset = 0
        self.random_flip, self.random_crop, self.dequantize = random_flip, random_crop, dequantize
        self._count = len(images)
        self._stream = None if file is None else _Stream(stored, file, images.offset, self.device)
        self._data = stored.to(self.device, copy=images.file is not None) if file is None else stored
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Return the positions in the data set of the samples of batch ``step``, int64 (batch_size,)."""
        n = self._count
        position = step * self.batch_size + self.offset
        stop = position + self.batch_size
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
        """Return batch ``step``: x0 in [0, 1], float32 (B, *shape), and labels, int64 (B,) or float32 (B, K)."""
        if self._stream is not None:
            index, data = self._stream.take(step, self.indices)
            index = self._move_index(index)
        else:
            index = self._move_index(torch.from_numpy(self.indices(step)))
            data = self._data.index_select(0, index)
        if self._images.uncropped is not None:
            data = self._crop(data)
        x0 = self._images.dequantize(data) if self.dequantize else self._images.normalize(data)
        if self.random_flip:
            flip = torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5
            x0 = torch.where(flip, x0.flip(-1), x0)
        return x0, self.labels[index]

    def _crop(self, data: Tensor) -> Tensor:
        """Cut the central window of each image of ``data``, or a random one."""
        size = self._images.shape[-1]
        margin = data.shape[-1] - size
        start = torch.full((2, len(data)), margin // 2, device=data.device)
        if self.random_crop:
            start = torch.randint(margin + 1, (2, len(data)), device=data.device)
        windows = data.unfold(2, size, 1).unfold(3, size, 1)  # (B, C, margin + 1, margin + 1, size, size)
        return windows[torch.arange(len(data), device=data.device), :, start[0], start[1]]

    def _move_index(self, index: Tensor) -> Tensor:
        """Move ``index`` to the device through pinned memory, so that the copy does not wait for a GPU."""
        return index if self.device.type == "cpu" else index.pin_memory().to(self.device, non_blocking=True)


class _Stream:
    """A reader of samples from the file of a data set, which prefetches those of the next step.

    It reads by system calls and not through the memory map: a mapped page counts as memory of this process, and its
    first access is slower than the call.
    """

    def __init__(self, stored: Tensor, file: BinaryIO, offset: int, device: torch.device) -> None:
        self._stored, self._file, self._offset, self._device = stored, file, offset, device
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Tensor, Future[Tensor]] | None = None

    def take(self, step: int, indices: Callable[[int], np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return the positions and the data of batch ``step``, and start to read batch ``step + 1``."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = self._begin(step, indices)
        _, index, future = self._ahead
        data = future.result()
        self._ahead = self._begin(step + 1, indices)
        return index, data.to(self._device, non_blocking=True)

    def _begin(self, step: int, indices: Callable[[int], np.ndarray]) -> tuple[int, Tensor, Future[Tensor]]:
        index = torch.from_numpy(indices(step))
        return step, index, self._reader.submit(self._read, index)

    def _read(self, index: Tensor) -> Tensor:
        file, stored = self._file, self._stored
        data = torch.empty(len(index), *stored.shape[1:], dtype=stored.dtype, pin_memory=self._device.type == "cuda")
        rows = data.flatten(1).numpy().view(np.uint8)
        size = rows.shape[1]
        for row, start in zip(rows, (self._offset + index * size).tolist(), strict=True):
            if os.preadv(file.fileno(), [row], start) != size:
                raise UserError(f"{file.name} was cut short while it was read")
        return data

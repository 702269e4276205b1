"""The class ``ImageDataset``, and the data sets that need no preparation."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from datasets.units import Composition, Units
from sde import Process
from utils.errors import InputError
from utils.locks import in_turn

DIGIT_LEVELS = 17  # grey levels of scikit-learn's digits


@dataclass(frozen=True)
class ImageDataset:
    """One split of a data set: images, or arrays of any other shape.

    Attributes:
        data: samples, (N, ...), (N, C, H, W) for images; uint8 with values 0 .. levels - 1, or float32 in [0, 1] if
            ``levels`` is None; with ``units``, values of any type in these.
        labels: classes 0 .. num_classes - 1, int64 (N,), or conditions, float32 (N, K), NaN where one is not known.
        num_classes: number of classes; 1 if there are none.
        levels: number of grey levels or other integers that the data consist of; None for continuous values.
        class_names: names of the classes in the order of their labels; empty if they have none.
        fingerprint: SHA-256 of the data and labels, for a data set made from a user's files; else empty.
        file: file that ``data`` maps into memory; None for data that are not mapped.
        offset: position of the first byte of the data in ``file``.
        units: map between the values in ``data`` and the cube; None for grey levels, and values in the cube.
        uncropped: larger images that ``data`` are the central windows of, as stored in ``file``; None if ``data`` are
            whole.

    Raises:
        ValueError: if the type of ``data`` does not fit ``levels``, or ``labels`` are neither.
    """

    data: Tensor
    labels: Tensor
    num_classes: int
    levels: int | None = 256
    class_names: tuple[str, ...] = ()
    fingerprint: str = ""
    file: BinaryIO | None = None
    offset: int = 0
    units: Units | None = None
    uncropped: Tensor | None = None

    def __post_init__(self) -> None:
        expected = torch.float32 if self.levels is None else torch.uint8
        if self.units is None and self.data.dtype != expected:
            raise ValueError(f"data with levels={self.levels} is {expected}, not {self.data.dtype}")
        if (self.labels.dtype, self.labels.ndim) not in ((torch.int64, 1), (torch.float32, 2)):
            raise ValueError(
                f"labels are int64 (N,) or float32 (N, K), not {self.labels.dtype}, {self.labels.ndim} axes"
            )

    def __len__(self) -> int:
        return len(self.data)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample in the cube, (C, H, W) of an image."""
        return tuple(self.normalize(self.data[:1]).shape[1:])

    @property
    def cond_size(self) -> int:
        """Number of values of the condition of a sample, K; 0 for data with classes or nothing."""
        return self.labels.shape[1] if self.labels.is_floating_point() else 0

    @property
    def is_image(self) -> bool:
        """True if a sample is an image, without units of its own."""
        return self.units is None and self.data.ndim == 4

    def crop(self, margin: int) -> "ImageDataset":
        """Return the central windows, ``margin`` pixels smaller, of these images, which stay as ``uncropped``."""
        start, size = margin // 2, self.data.shape[-1] - margin
        window = self.data[..., start : start + size, start : start + size]
        return replace(self, data=window, uncropped=self.data)

    def check_domain(self, process: Process) -> None:
        """Raise InputError unless the samples are of the domain of ``process``."""
        if self.units is not None:
            self.units.check_process(process)
        in_order = isinstance(self.units, Composition) and self.units.kind == "ordered"
        if not process.elementwise and not in_order:
            process.check_data(self.normalize(self.data), self.levels)

    def normalize(self, data: Tensor) -> Tensor:
        """Convert rows of ``data`` to points of the cube, float32 in [0, 1]: grey levels k to k / (levels - 1)."""
        if self.units is not None:
            return self.units.to_cube(data)
        return data if self.levels is None else data * (1.0 / (self.levels - 1))  # uint8 times a number is float32

    def dequantize(self, data: Tensor, u: Tensor | None = None) -> Tensor:
        """Convert levels k to (k + u) / levels, float32 in [0, 1]: uniform dequantization.

        Args:
            data: rows of ``data``; without levels the result is that of ``normalize``.
            u: noise in [0, 1), in the shape of ``data``; drawn uniformly if None.
        """
        if self.levels is None:
            return self.normalize(data)
        u = torch.rand(data.shape, device=data.device) if u is None else u
        k = data if self.units is None else (self.units.to_cube(data) * (self.levels - 1)).round()
        return (k + u) * (1.0 / self.levels)


def digits(train: bool, **_: object) -> ImageDataset:
    """Load scikit-learn's 1,797 handwritten digits of 8x8 pixels and 17 levels; every fifth is held out."""
    from sklearn.datasets import load_digits  # a slow import

    data = load_digits()
    held_out = np.arange(len(data.target)) % 5 == 4
    chosen = ~held_out if train else held_out
    pixels = torch.from_numpy(data.images[chosen].astype(np.uint8))[:, None]
    labels = torch.from_numpy(data.target[chosen].astype(np.int64))
    return ImageDataset(pixels, labels, num_classes=10, levels=DIGIT_LEVELS)


def fake(train: bool, image_size: int, num_channels: int, num_classes: int, **_: object) -> ImageDataset:
    """Generate random images and labels, the same at each call: 1,024 to train on, 256 held out."""
    generator = torch.Generator().manual_seed(int(train))
    n = 1024 if train else 256
    pixels = torch.randint(256, (n, num_channels, image_size, image_size), dtype=torch.uint8, generator=generator)
    return ImageDataset(pixels, torch.randint(max(1, num_classes), (n,), generator=generator), max(1, num_classes))


def cifar10(train: bool, dataroot: str, **_: object) -> ImageDataset:
    """Load CIFAR-10 from torchvision's files under ``dataroot``, which are downloaded if they are not there.

    Raises:
        InputError: if they cannot be downloaded, naming the file to place by hand.
    """
    from torchvision.datasets import CIFAR10  # a slow import

    try:
        try:
            data = CIFAR10(dataroot, train=train)
        except RuntimeError:  # missing or incomplete
            Path(dataroot).mkdir(parents=True, exist_ok=True)
            with in_turn(Path(dataroot) / ".cifar10.lock", "another process is downloading CIFAR-10"):
                data = CIFAR10(dataroot, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"CIFAR-10 is not in dataroot={Path(dataroot).resolve()} and cannot be downloaded ({error}): "
            "place cifar-10-python.tar.gz there"
        ) from error
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageDataset(pixels, torch.tensor(data.targets), num_classes=10)

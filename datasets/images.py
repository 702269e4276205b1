"""What a data set is, and the small ones that need no preparation."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.locks import in_turn


@dataclass(frozen=True)
class ImageDataset:
    """One split of a data set.

    Attributes:
        pixels: uint8 (N, C, H, W), values 0 .. levels - 1.
        labels: int64 (N,).
        num_classes: labels are 0 .. num_classes - 1.
        levels: number of grey levels; ``pixels / (levels - 1)`` is in [0, 1].
        class_names: names of the classes in the order of their labels; empty if they have none.
        fingerprint: SHA-256 of the pixels and labels, for a data set made from a user's files; else empty.
        file: that the pixels lie in, from ``offset`` on, if they are not in memory; ``pixels`` is then a map of it.
    """

    pixels: Tensor
    labels: Tensor
    num_classes: int
    levels: int = 256
    class_names: tuple[str, ...] = ()
    fingerprint: str = ""
    file: BinaryIO | None = None
    offset: int = 0

    def __len__(self) -> int:
        return len(self.pixels)


def digits(train: bool, **_: object) -> ImageDataset:
    """The 1,797 handwritten digits of 8x8 pixels and 17 levels that scikit-learn carries; every fifth is held out."""
    from sklearn.datasets import load_digits  # heavy import, only where used

    data = load_digits()
    held_out = np.arange(len(data.target)) % 5 == 4
    chosen = ~held_out if train else held_out
    pixels = torch.from_numpy(data.images[chosen].astype(np.uint8))[:, None]
    return ImageDataset(pixels, torch.from_numpy(data.target[chosen].astype(np.int64)), num_classes=10, levels=17)


def fake(train: bool, image_size: int, num_channels: int, num_classes: int, **_: object) -> ImageDataset:
    """Random images and labels, the same at each call, 1024 to train on and 256 held out."""
    generator = torch.Generator().manual_seed(int(train))
    n = 1024 if train else 256
    pixels = torch.randint(256, (n, num_channels, image_size, image_size), dtype=torch.uint8, generator=generator)
    return ImageDataset(pixels, torch.randint(max(1, num_classes), (n,), generator=generator), max(1, num_classes))


def cifar10(train: bool, dataroot: str, **_: object) -> ImageDataset:
    """CIFAR-10 from torchvision's files under ``dataroot``, downloaded if they are not there."""
    from torchvision.datasets import CIFAR10

    try:
        try:
            data = CIFAR10(dataroot, train=train)
        except RuntimeError:  # not there, or not whole
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

"""The score model: a network, the parametrization of its output, and the precision that it runs in."""

import math
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from models.layers import Network
from models.parametrization import Parametrization
from utils.errors import InputError
from utils.options import check_name

NULL_LABEL = -1  # stands for "no class"; class 0 is a real class. "No condition" is NaN
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def null_like(labels: Tensor) -> Tensor:
    """Return the null label, or the null condition if ``labels`` are conditions, in their shape."""
    return torch.full_like(labels, math.nan if labels.is_floating_point() else NULL_LABEL)


class ScoreModel(nn.Module):
    """A network with the parametrization of its output: (x, sigma, labels=None) -> score.

    Checkpoints contain ``network.state_dict()``: the parametrization has no tensors.

    Args:
        network: module (x, sigma, labels) -> raw output.
        parametrization: conversion of the raw output to a score.

    Attributes:
        precision: name of the precision in ``PRECISIONS``; see ``set_precision``.
    """

    def __init__(self, network: Network, parametrization: Parametrization) -> None:
        super().__init__()
        self.network = network
        self.parametrization = parametrization
        self.precision = "fp32"

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one item of the data, such as (C, H, W)."""
        return self.network.data_shape

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for a network without classes."""
        return self.network.num_classes

    @property
    def cond_size(self) -> int:
        """Number of values of the condition; 0 for a network without a condition."""
        return self.network.cond_size

    @property
    def takes_labels(self) -> bool:
        """Whether the network has classes or a condition."""
        return bool(self.num_classes or self.cond_size)

    def set_precision(self, precision: str) -> Self:
        """Choose the precision of the network, and return this model.

        Args:
            precision: ``fp32``, or ``bf16`` or ``fp16`` for autocast: convolutions, linear maps and attention run in
                half precision; normalisations, the embedding of the noise level and the parametrization do not.

        Raises:
            InputError: for another name.
        """
        check_name("precision", precision, PRECISIONS)
        self.precision = precision
        return self

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """Compute the score.

        Args:
            x: noisy data, (B, *data_shape).
            sigma: noise levels, (B,).
            labels: classes, int64 (B,), ``NULL_LABEL`` for no class; or conditions, float32 (B, cond_size), NaN for no
                condition; None for no class or condition in the whole batch.
            augmentation: what was done to each image, float32 (B, augment_size), of a network that is told; None for
                nothing.

        Returns:
            Estimate of d/dx log p_sigma(x | label), (B, *data_shape), in float32 or wider.

        Raises:
            InputError: if labels are given to a network without classes and without a condition.
        """
        if labels is not None and not self.takes_labels:
            raise InputError("this network has no classes: call it without labels")
        if labels is None and self.num_classes:
            labels = torch.full((len(x),), NULL_LABEL, device=x.device)
        elif labels is None and self.cond_size:
            labels = torch.full((len(x), self.cond_size), math.nan, device=x.device)
        half = self.precision != "fp32"
        with torch.autocast(x.device.type, PRECISIONS[self.precision]) if half else nullcontext():
            told = () if augmentation is None else (augmentation,)
            raw = self.network(self.parametrization.scale_input(x, sigma), sigma, labels, *told)
        return self.parametrization(raw.to(torch.promote_types(raw.dtype, torch.float32)), x, sigma)

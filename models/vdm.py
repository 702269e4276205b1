"""VDM (Kingma et al. 2021), the published network for likelihood: no resampling, Fourier features of pixels."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.layers import (
    CONVOLUTIONS,
    Block,
    Network,
    PixelAttention,
    Weighted,
    append_axes,
    augmentation_embedding,
    check_axes,
    full_precision,
    group_norm,
    zero_init,
)
from models.options import NumBlocks
from utils.errors import InputError
from utils.options import Probability

EPS = 1e-6  # epsilon of every group normalisation


def _init(layer: Weighted) -> Weighted:
    """Fill the weight with N(0, 1 / fan_in) and the bias with zero, and return ``layer``."""
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(Block):
    """Two convolutions over ``axes`` axes with the noise embedding between them: (B, in, ...) -> (B, out, ...)."""

    def __init__(self, axes: int, in_channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.conv1 = _init(conv(in_channels, out_channels, 3, padding=1))
        self.conv2 = zero_init(conv(out_channels, out_channels, 3, padding=1))
        self.norm1 = group_norm(in_channels, EPS)
        self.norm2 = group_norm(out_channels, EPS)
        changes = in_channels != out_channels
        self.shortcut = _init(conv(in_channels, out_channels, 1)) if changes else nn.Identity()
        self.embed = zero_init(nn.Linear(embedding, out_channels, bias=False))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + append_axes(self.embed(embedding), h)
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class VDM(Network):
    """Network without resampling for data of one to three axes and channels, without classes; see ``Network``.

    Args:
        data_shape: shape of the data, (C, L), (C, H, W) or (C, D, H, W), with sides of any length.
        augment_size: number of values that describe the augmentation of an image; 0 for a network that is not told.
        num_outputs: number of output channels for each channel of the data.
        sigma_min: noise level that the embedding maps to 0.
        sigma_max: noise level that the embedding maps to 1.
        channels: number of channels, at least 4.
        num_blocks: number of residual blocks of the encoder (one more in the decoder).
        attention: self-attention after every residual block, and not only in the middle.
        image_fourier: further input channels, sin and cos of 2 pi 2^k x for every k in [start, end).
        image_fourier_start: first k of the further channels.
        image_fourier_end: end of the range of k, exclusive.
        dropout: probability that a feature is dropped in training, in [0, 1).

    Raises:
        InputError: if the data have another number of axes, or ``channels`` or the range of k is out of bounds.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        augment_size: int = 0,
        num_outputs: int = 1,
        sigma_min: float,
        sigma_max: float,
        channels: Annotated[int, Field(ge=4, le=8192)] = 128,
        num_blocks: NumBlocks = 32,
        attention: bool = False,
        image_fourier: bool = True,
        image_fourier_start: Annotated[int, Field(ge=0, le=64)] = 6,
        image_fourier_end: Annotated[int, Field(ge=0, le=64)] = 8,
        dropout: Probability = 0.1,
    ) -> None:
        super().__init__(data_shape)
        num_channels, sides = check_axes(data_shape, "vdm")
        axes, conv = len(sides), CONVOLUTIONS[len(sides)]
        if channels < 4:
            raise InputError(f"model.channels={channels}: need at least 4")
        if image_fourier and not 0 <= image_fourier_start <= image_fourier_end <= 24:  # the bits of a float32 pixel
            raise InputError(
                f"model.image_fourier_start={image_fourier_start} and model.image_fourier_end={image_fourier_end}: "
                "need integers, 0 <= start <= end <= 24"
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.channels = channels
        self.image_fourier = image_fourier
        self.fourier_powers = list(range(image_fourier_start, image_fourier_end)) if image_fourier else []

        def block(in_channels: int) -> nn.ModuleList:
            """Create a residual block and its attention."""
            after = PixelAttention(axes, channels, 1, EPS, _init) if attention else nn.Identity()
            return nn.ModuleList([ResidualBlock(axes, in_channels, channels, 4 * channels, dropout), after])

        self.embed1 = _init(nn.Linear(channels, 4 * channels))
        self.embed2 = _init(nn.Linear(4 * channels, 4 * channels))
        if augment_size:
            self.embed_augmentation = augmentation_embedding(augment_size, 4 * channels)
        self.conv_in = _init(conv(num_channels * (1 + 2 * len(self.fourier_powers)), channels, 3, padding=1))
        self.encoder = nn.ModuleList(block(channels) for _ in range(num_blocks))
        self.mid_block1 = ResidualBlock(axes, channels, channels, 4 * channels, dropout)
        self.mid_attention = PixelAttention(axes, channels, 1, EPS, _init)
        self.mid_block2 = ResidualBlock(axes, channels, channels, 4 * channels, dropout)
        self.decoder = nn.ModuleList(block(2 * channels) for _ in range(num_blocks + 1))
        self.norm_out = group_norm(channels, EPS)
        self.conv_out = zero_init(conv(channels, num_outputs * num_channels, 3, padding=1))

    def embed(self, sigma: Tensor, augmentation: Tensor | None) -> Tensor:
        """Embed the noise level and the augmentation, as (B, 4 * channels)."""
        t = 1000.0 * (sigma - self.sigma_min) / (self.sigma_max - self.sigma_min)
        half = self.channels // 2
        powers = torch.arange(half, dtype=sigma.dtype, device=sigma.device) / (half - 1)
        angle = t[:, None] * torch.exp(-math.log(10000.0) * powers)
        features = torch.cat([angle.sin(), angle.cos()], dim=1)
        if self.channels % 2:
            features = F.pad(features, (0, 1))
        embedding = self.embed2(F.silu(self.embed1(features)))
        return embedding if augmentation is None else embedding + self.embed_augmentation(augmentation)

    def append_fourier(self, x: Tensor) -> Tensor:
        """Append all sines and all cosines to the data, (B, C, ...) -> (B, C (1 + 2 powers), ...)."""
        if not self.image_fourier:
            return x
        powers = [2.0 * math.pi * 2.0**k for k in self.fourier_powers]
        frequencies = torch.tensor(powers, dtype=x.dtype, device=x.device)
        angle = (x[:, :, None] * frequencies.reshape(-1, *[1] * (x.ndim - 2))).flatten(1, 2)
        return torch.cat([x, angle.sin(), angle.cos()], dim=1)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None, augmentation: Tensor | None = None) -> Tensor:
        """Compute the raw output; see ``Network``."""
        with full_precision(x):
            embedding = self.embed(sigma, augmentation)

        h = self.conv_in(self.append_fourier(x))
        skips = [h]
        for block, attention in self.encoder:
            h = attention(block(h, embedding))
            skips.append(h)
        h = self.mid_block2(self.mid_attention(self.mid_block1(h, embedding)), embedding)
        for block, attention in self.decoder:
            h = attention(block(torch.cat([h, skips.pop()], dim=1), embedding))

        return self.conv_out(F.silu(self.norm_out(h)))

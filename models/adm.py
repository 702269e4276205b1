"""ADM (Dhariwal & Nichol 2021) in the layout of EDM (Karras et al. 2022), the class-conditional network."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import (
    CONVOLUTIONS,
    Block,
    Network,
    PixelAttention,
    Resample,
    Weighted,
    append_axes,
    augmentation_embedding,
    check_axes,
    check_divisible,
    condition_features,
    downsample,
    full_precision,
    group_norm,
    one_hot,
    upsample,
    zero_init,
)
from models.options import Multiple, Multiples, NumBlocks, Resolutions, Width
from utils.errors import InputError
from utils.options import Probability

EPS = 1e-5  # epsilon of every group normalisation
CHANNELS_PER_HEAD = 64


def _init(layer: Weighted) -> Weighted:
    """Fill weight and bias with U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as EDM does, and return ``layer``."""
    bound = 1.0 / math.sqrt(layer.weight[0].numel())
    for p in layer.parameters():
        nn.init.uniform_(p, -bound, bound)
    return layer


class ResidualBlock(Block):
    """Residual block, such as (B, in, H, W) -> (B, out, H', W'), that may end in attention.

    The data have ``axes`` axes after the channels. The embedding scales and shifts the second normalisation.
    ``resample`` (None, ``upsample`` or ``downsample``) sets H', W'. Attention has a head for every 64 channels; a block
    of fewer channels has no attention, as in the published network.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        attention: bool = False,
        resample: Resample = None,
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.resample = resample
        self.norm1 = group_norm(in_channels, EPS)
        self.conv1 = _init(conv(in_channels, out_channels, 3, padding=1))
        self.affine = _init(nn.Linear(embedding, 2 * out_channels))
        self.norm2 = group_norm(out_channels, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv(out_channels, out_channels, 3, padding=1))
        changes = in_channels != out_channels
        self.shortcut = _init(conv(in_channels, out_channels, 1)) if changes else nn.Identity()
        heads = out_channels // CHANNELS_PER_HEAD if attention else 0
        self.attention = PixelAttention(axes, out_channels, heads, EPS, _init) if heads else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        scale, shift = append_axes(self.affine(embedding), h).chunk(2, dim=1)
        h = shift + self.norm2(self.conv1(h)) * (scale + 1.0)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.attention(self.shortcut(x) + h)


class Level(nn.Module):
    """The blocks of a resolution of largest side ``size``: first ``enter``, from the level before, then ``blocks``."""

    def __init__(self, size: int, enter: Sequence[Block], blocks: Sequence[Block]) -> None:
        super().__init__()
        self.size = size
        self.enter = nn.ModuleList(enter)
        self.blocks = nn.ModuleList(blocks)


class ADM(Network):
    """U-Net for data of one to three axes and channels, with or without classes or a condition; see ``Network``.

    Args:
        data_shape: shape of the data, (C, L), (C, H, W) or (C, D, H, W), every side divisible by 2^(levels - 1).
        num_classes: number of classes; 0 for a network without classes.
        cond_size: number of values of the condition; 0 for a network without a condition.
        augment_size: number of values that describe the augmentation of an image; 0 for a network that is not told.
        num_inputs: number of input channels for each channel of the data.
        num_outputs: number of output channels for each channel of the data.
        model_channels: number of channels at the first level.
        channel_mult: channels of each level in units of ``model_channels``; as many levels as entries.
        channel_mult_emb: size of the embedding in units of ``model_channels``.
        num_blocks: number of residual blocks of a level (one more in the decoder).
        attn_resolutions: largest sides of the levels whose blocks of at least 64 channels end in attention.
        dropout: probability that a feature is dropped in training, in [0, 1).

    Raises:
        InputError: if ``data_shape`` does not suit the levels, or ``model_channels`` is odd.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int = 0,
        cond_size: int = 0,
        *,
        augment_size: int = 0,
        num_inputs: int = 1,
        num_outputs: int = 1,
        model_channels: Width = 192,
        channel_mult: Multiples = (1, 2, 3, 4),
        channel_mult_emb: Multiple = 4,
        num_blocks: NumBlocks = 3,
        attn_resolutions: Resolutions = (32, 16, 8),
        dropout: Probability = 0.1,
    ) -> None:
        super().__init__(data_shape, num_classes, cond_size)
        levels = len(channel_mult)
        num_channels, sides = check_axes(data_shape, "adm")
        check_divisible(data_shape, levels)
        conv = CONVOLUTIONS[len(sides)]
        if model_channels % 2:
            raise InputError(f"model.model_channels={model_channels}: need an even number")
        embedding = model_channels * channel_mult_emb
        widths = [model_channels * m for m in channel_mult]
        sizes = [max(sides) >> level for level in range(levels)]

        def block(
            in_channels: int,
            out_channels: int,
            size: int | None = None,
            attention: bool = False,
            resample: Resample = None,
        ) -> ResidualBlock:
            attention = attention or size in attn_resolutions
            return ResidualBlock(len(sides), in_channels, out_channels, embedding, dropout, attention, resample)

        self.model_channels = model_channels
        self.embed1 = _init(nn.Linear(model_channels, embedding))
        self.embed2 = _init(nn.Linear(embedding, embedding))
        if num_classes:
            self.embed_label = nn.Linear(num_classes, embedding, bias=False)
            nn.init.normal_(self.embed_label.weight)  # one row enters at a time: no fan-in to divide by
        if augment_size:
            self.embed_augmentation = augmentation_embedding(augment_size, embedding)
        if cond_size:
            self.embed_cond = _init(nn.Linear(2 * cond_size, embedding, bias=False))
        self.conv_in = _init(conv(num_inputs * num_channels, widths[0], 3, padding=1))

        width, skips = widths[0], [widths[0]]
        self.encoder = nn.ModuleList()
        for level, (out, size) in enumerate(zip(widths, sizes, strict=True)):
            enter = [block(width, width, resample=downsample)] if level else []
            skips += [width] * len(enter)
            blocks = [block(width if i == 0 else out, out, size) for i in range(num_blocks)]
            skips += [out] * num_blocks
            self.encoder.append(Level(size, enter, blocks))
            width = out

        self.decoder = nn.ModuleList()
        for level, out, size in reversed(list(zip(range(levels), widths, sizes, strict=True))):
            if level == levels - 1:
                enter = [block(width, width, attention=True), block(width, width)]
            else:
                enter = [block(width, width, resample=upsample)]
            blocks = []
            for _ in range(num_blocks + 1):
                blocks.append(block(width + skips.pop(), out, size))
                width = out
            self.decoder.append(Level(size, enter, blocks))

        self.norm_out = group_norm(width, EPS)
        self.conv_out = zero_init(conv(width, num_outputs * num_channels, 3, padding=1))

    def embed(self, sigma: Tensor, labels: Tensor | None, augmentation: Tensor | None) -> Tensor:
        """Embed noise level, class or condition, and augmentation, as (B, channel_mult_emb * model_channels)."""
        half = self.model_channels // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=sigma.dtype, device=sigma.device) / half)
        angle = torch.log(0.5 * sigma)[:, None] * frequencies
        h = self.embed2(F.silu(self.embed1(torch.cat([angle.cos(), angle.sin()], dim=1))))
        if augmentation is not None:
            h = h + self.embed_augmentation(augmentation)
        if labels is not None and self.cond_size:
            h = h + self.embed_cond(condition_features(labels.to(sigma.dtype)))
        elif labels is not None:
            h = h + self.embed_label(one_hot(labels, self.num_classes).to(sigma.dtype))
        return F.silu(h)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None, augmentation: Tensor | None = None) -> Tensor:
        """Compute the raw output; see ``Network``."""
        with full_precision(x):
            embedding = self.embed(sigma, labels, augmentation)

        h = self.conv_in(x)
        skips = [h]
        for level in self.encoder:
            for block in (*level.enter, *level.blocks):
                h = block(h, embedding)
                skips.append(h)
        for level in self.decoder:
            for block in level.enter:
                h = block(h, embedding)
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)

        return self.conv_out(F.silu(self.norm_out(h)))

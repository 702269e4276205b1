"""ADM (Dhariwal & Nichol 2021) in the layout of EDM (Karras et al. 2022), the class-conditional network."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import (
    Block,
    PixelAttention,
    Resample,
    ScoreNetwork,
    Weighted,
    check_labels,
    check_levels,
    divide_by_sigma,
    downsample,
    full_precision,
    group_norm,
    upsample,
    zero_init,
)
from utils.errors import InputError

EPS = 1e-5  # of every group normalisation
CHANNELS_PER_HEAD = 64


def _init(layer: Weighted) -> Weighted:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias: what EDM uses in this network."""
    bound = 1.0 / math.sqrt(layer.weight[0].numel())
    for p in layer.parameters():
        nn.init.uniform_(p, -bound, bound)
    return layer


class ResidualBlock(Block):
    """Residual block whose second normalisation is scaled and shifted by the embedding, then attention.

    (B, in, H, W) -> (B, out, H', W'); ``resample`` (None, ``upsample`` or ``downsample``) sets H', W'. Attention has a
    head for every 64 channels: fewer channels have none, as in the published network.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        attention: bool = False,
        resample: Resample = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = group_norm(in_channels, EPS)
        self.conv1 = _init(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.affine = _init(nn.Linear(embedding, 2 * out_channels))
        self.norm2 = group_norm(out_channels, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        changes = in_channels != out_channels
        self.shortcut = _init(nn.Conv2d(in_channels, out_channels, 1)) if changes else nn.Identity()
        heads = out_channels // CHANNELS_PER_HEAD if attention else 0
        self.attention = PixelAttention(out_channels, heads, EPS, _init) if heads else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = shift + self.norm2(self.conv1(h)) * (scale + 1.0)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.attention(self.shortcut(x) + h)


class Level(nn.Module):
    """The blocks of one resolution, ``size`` pixels wide, after those that come to it from the neighbouring one."""

    def __init__(self, size: int, enter: Sequence[Block], blocks: Sequence[Block]) -> None:
        super().__init__()
        self.size = size
        self.enter = nn.ModuleList(enter)
        self.blocks = nn.ModuleList(blocks)


class ADM(ScoreNetwork):
    """Score network with classes: (x, sigma, labels) -> score.

    Args:
        image_size: height and width of the images, divisible by 2^(levels - 1).
        num_channels: of the images.
        num_classes: 0 for a network without classes.
        model_channels: channels at the first level.
        channel_mult: channels of each level in units of ``model_channels``; as many levels as entries.
        channel_mult_emb: size of the embedding in units of ``model_channels``.
        num_blocks: residual blocks of a level (one more on the way up).
        attn_resolutions: image sizes at which blocks of at least 64 channels end in attention.
        dropout: probability, in [0, 1).
        scale_by_sigma: divide the output by sigma.

    Raises:
        InputError: if ``image_size`` does not suit the levels.
    """

    def __init__(
        self,
        image_size: int,
        num_channels: int = 3,
        num_classes: int = 0,
        *,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        scale_by_sigma: bool = True,
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        check_levels(image_size, levels)
        if model_channels % 2:
            raise InputError(f"model.model_channels={model_channels}: need an even number")
        self.num_classes = num_classes
        self.scale_by_sigma = scale_by_sigma
        embedding = model_channels * channel_mult_emb
        widths = [model_channels * m for m in channel_mult]
        sizes = [image_size >> level for level in range(levels)]

        def block(
            in_channels: int,
            out_channels: int,
            size: int | None = None,
            attention: bool = False,
            resample: Resample = None,
        ) -> ResidualBlock:
            attention = attention or size in attn_resolutions
            return ResidualBlock(in_channels, out_channels, embedding, dropout, attention, resample)

        self.model_channels = model_channels
        self.embed1 = _init(nn.Linear(model_channels, embedding))
        self.embed2 = _init(nn.Linear(embedding, embedding))
        if num_classes:
            self.embed_label = nn.Linear(num_classes, embedding, bias=False)
            nn.init.normal_(self.embed_label.weight)  # one row enters at a time: no fan-in to divide by
        self.conv_in = _init(nn.Conv2d(num_channels, widths[0], 3, padding=1))

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
        self.conv_out = zero_init(nn.Conv2d(width, num_channels, 3, padding=1))

    def embed(self, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Embedding of noise level and class, (B,), (B,) -> (B, channel_mult_emb * model_channels)."""
        half = self.model_channels // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=sigma.dtype, device=sigma.device) / half)
        angle = torch.log(0.5 * sigma)[:, None] * frequencies
        h = self.embed2(F.silu(self.embed1(torch.cat([angle.cos(), angle.sin()], dim=1))))
        if labels is not None:
            # A comparison rather than one_hot: the null label -1 becomes the zero row.
            one_hot = labels[:, None] == torch.arange(self.num_classes, device=labels.device)
            h = h + self.embed_label(one_hot.to(sigma.dtype))
        return F.silu(h)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Score at ``x``.

        Args:
            x: images in [0, 1], (B, C, H, W).
            sigma: noise levels, (B,).
            labels: classes, int64 (B,), -1 for none; None means none for all.

        Returns:
            Estimate of d/dx log p_sigma(x | label), (B, C, H, W).

        Raises:
            InputError: if labels are given to a network without classes.
        """
        check_labels(labels, self.num_classes)
        with full_precision(x):
            embedding = self.embed(sigma, labels)

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

        h = self.conv_out(F.silu(self.norm_out(h)))
        return divide_by_sigma(h, sigma) if self.scale_by_sigma else h

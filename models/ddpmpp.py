"""DDPM++ (Song et al. 2021, appendix H), the unconditional network of the published CIFAR-10 model."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.layers import (
    Block,
    Network,
    Resample,
    augmentation_embedding,
    check_square_images,
    downsample,
    full_precision,
    group_norm,
    init_layer,
    upsample,
)
from models.options import Multiples, NumBlocks, Resolutions, Width
from utils.options import Probability

EPS = 1e-6  # epsilon of every group normalisation
QKV_SCALE = 0.1  # variance scale of the initial query, key and value layers


class FourierEmbedding(nn.Module):
    """Random Fourier features of log sigma, (B,) -> (B, 2 * features), whose frequencies are not trained.

    The angles reach a thousand radians, where float32 has only three decimals: they are computed in float64.
    """

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(features) * scale, requires_grad=False)

    def forward(self, sigma: Tensor) -> Tensor:
        angle = 2.0 * math.pi * torch.log(sigma.double())[:, None] * self.frequencies.double()
        return torch.cat([angle.sin(), angle.cos()], dim=1).to(self.frequencies.dtype)


class ResidualBlock(Block):
    """Two convolutions with the noise embedding between them: (B, in, H, W) -> (B, out, H', W').

    ``resample`` (None, ``upsample`` or ``downsample``) acts on both branches and sets H', W'.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        skip_rescale: bool,
        init_scale: float,
        resample: Resample = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.rescale = 1.0 / math.sqrt(2.0) if skip_rescale else 1.0
        self.norm1 = group_norm(in_channels, EPS)
        self.conv1 = init_layer(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.embed = init_layer(nn.Linear(embedding, out_channels))
        self.norm2 = group_norm(out_channels, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = init_layer(nn.Conv2d(out_channels, out_channels, 3, padding=1), init_scale)
        changes = resample is not None or in_channels != out_channels
        self.shortcut = init_layer(nn.Conv2d(in_channels, out_channels, 1)) if changes else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h) + self.embed(F.silu(embedding))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.shortcut(x) + h) * self.rescale


class Attention(nn.Module):
    """Residual self-attention with one head over the pixels, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, skip_rescale: bool, init_scale: float) -> None:
        super().__init__()
        self.rescale = 1.0 / math.sqrt(2.0) if skip_rescale else 1.0
        self.norm = group_norm(channels, EPS)
        self.query = init_layer(nn.Linear(channels, channels), QKV_SCALE)
        self.key = init_layer(nn.Linear(channels, channels), QKV_SCALE)
        self.value = init_layer(nn.Linear(channels, channels), QKV_SCALE)
        self.out = init_layer(nn.Linear(channels, channels), init_scale)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, one head, H*W, C)
        h = F.scaled_dot_product_attention(self.query(pixels), self.key(pixels), self.value(pixels))
        return (x + self.out(h)[:, 0].transpose(1, 2).reshape(x.shape)) * self.rescale


class DownLevel(nn.Module):
    """The blocks of one resolution of the encoder, and the downsampling after them, except at the last level."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        attentions: Sequence[nn.Module],
        down: nn.Module | None = None,
        pyramid: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # Each block stands beside its attention, so that parameters come in the order of computation.
        self.blocks = nn.ModuleList(nn.ModuleList(pair) for pair in zip(blocks, attentions, strict=True))
        self.down = down
        self.pyramid = pyramid


class UpLevel(nn.Module):
    """The blocks of one resolution of the decoder, one attention, and the upsampling, except at the first level."""

    def __init__(self, blocks: Sequence[nn.Module], attention: nn.Module, up: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.up = up


class DDPMpp(Network):
    """U-Net for square images without classes; see ``Network``.

    Args:
        data_shape: shape of an image, (C, H, H), with H divisible by 2^(levels - 1).
        augment_size: number of values that describe the augmentation of an image; 0 for a network that is not told.
        num_outputs: number of output channels for each channel of the data.
        nf: number of channels at the first level.
        ch_mult: channels of each level in units of ``nf``; as many levels as entries.
        num_res_blocks: number of residual blocks of a level (one more in the decoder).
        attn_resolutions: image sizes at which attention follows the blocks.
        dropout: probability that a feature is dropped in training, in [0, 1).
        skip_rescale: division of the sum of two branches by sqrt(2).
        fourier_scale: standard deviation of the frequencies of the noise embedding.
        init_scale: variance of the last layer of each branch; 0 starts branches at (nearly) zero.

    Raises:
        InputError: if ``data_shape`` does not suit the levels.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        augment_size: int = 0,
        num_outputs: int = 1,
        nf: Width = 128,
        ch_mult: Multiples = (1, 2, 2, 2),
        num_res_blocks: NumBlocks = 8,
        attn_resolutions: Resolutions = (16,),
        dropout: Probability = 0.1,
        skip_rescale: bool = True,
        fourier_scale: Annotated[float, Field(gt=0, le=10**6)] = 16.0,
        init_scale: Annotated[float, Field(ge=0, le=10**6)] = 0.0,
    ) -> None:
        super().__init__(data_shape)
        levels = len(ch_mult)
        num_channels, image_size = check_square_images(data_shape, "ddpmpp", levels)
        self.rescale = 1.0 / math.sqrt(2.0) if skip_rescale else 1.0
        widths = [nf * m for m in ch_mult]
        sizes = [image_size >> level for level in range(levels)]

        def block(in_channels: int, out_channels: int, resample: Resample = None) -> ResidualBlock:
            return ResidualBlock(in_channels, out_channels, 4 * nf, dropout, skip_rescale, init_scale, resample)

        def attention(channels: int, size: int) -> nn.Module:
            return Attention(channels, skip_rescale, init_scale) if size in attn_resolutions else nn.Identity()

        self.fourier = FourierEmbedding(nf, fourier_scale)
        self.embed1 = init_layer(nn.Linear(2 * nf, 4 * nf))
        self.embed2 = init_layer(nn.Linear(4 * nf, 4 * nf))
        if augment_size:
            self.embed_augmentation = augmentation_embedding(augment_size, 4 * nf)
        self.conv_in = init_layer(nn.Conv2d(num_channels, nf, 3, padding=1))

        skips, width, pyramid_width = [nf], nf, num_channels  # channels of the skips, of h, of the pyramid
        self.down_levels = nn.ModuleList()
        for level, (out, size) in enumerate(zip(widths, sizes, strict=True)):
            blocks = [block(width if i == 0 else out, out) for i in range(num_res_blocks)]
            attentions = [attention(out, size) for _ in range(num_res_blocks)]
            skips += [out] * num_res_blocks
            down = pyramid = None
            if level < levels - 1:
                down = block(out, out, downsample)
                pyramid = init_layer(nn.Conv2d(pyramid_width, out, 3, stride=2))
                skips.append(out)
                pyramid_width = out
            self.down_levels.append(DownLevel(blocks, attentions, down, pyramid))
            width = out

        self.mid_block1 = block(width, width)
        self.mid_attention = Attention(width, skip_rescale, init_scale)
        self.mid_block2 = block(width, width)

        self.up_levels = nn.ModuleList()
        for level, out, size in reversed(list(zip(range(levels), widths, sizes, strict=True))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(block(width + skips.pop(), out))
                width = out
            up = block(out, out, upsample) if level > 0 else None
            self.up_levels.append(UpLevel(blocks, attention(out, size), up))

        self.norm_out = group_norm(width, EPS)
        self.conv_out = init_layer(nn.Conv2d(width, num_outputs * num_channels, 3, padding=1), init_scale)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None, augmentation: Tensor | None = None) -> Tensor:
        """Compute the raw output; see ``Network``."""
        with full_precision(x):
            embedding = self.embed2(F.silu(self.embed1(self.fourier(sigma))))
            if augmentation is not None:
                embedding = embedding + self.embed_augmentation(augmentation)

        pyramid = 2.0 * x - 1.0
        h = self.conv_in(pyramid)
        skips = [h]
        for level in self.down_levels:
            for block, attention in level.blocks:
                h = attention(block(h, embedding))
                skips.append(h)
            if level.down is not None:
                pyramid = level.pyramid(F.pad(pyramid, (0, 1, 0, 1)))
                h = pyramid = (pyramid + level.down(h, embedding)) * self.rescale
                skips.append(h)

        h = self.mid_block2(self.mid_attention(self.mid_block1(h, embedding)), embedding)

        for level in self.up_levels:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            h = level.attention(h)
            if level.up is not None:
                h = level.up(h, embedding)

        return self.conv_out(F.silu(self.norm_out(h)))

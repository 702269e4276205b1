"""Pieces that more than one network uses."""

import functools
import math
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.errors import InputError

# A linear map or a convolution, with a bias
Weighted = TypeVar("Weighted", nn.Linear, nn.Conv2d)


Resample = Callable[[Tensor], Tensor] | None  # of the resolution: upsample, downsample, or neither


class ScoreNetwork(nn.Module):
    """(x, sigma, labels=None) -> score: images (B, C, H, W), noise levels (B,), classes int64 (B,), -1 for none."""

    num_classes: int = 0


class Block(nn.Module):
    """A part of a network, (features, embedding) -> features, whose inside ``recompute_activations`` does not keep."""


def recompute_activations(net: nn.Module) -> None:
    """Let ``net`` keep what goes into each of its blocks, and compute what is inside again in the backward pass.

    The gradient is the same, dropout included, for a third more time and much less memory (Chen et al. 2016).
    """
    for block in net.modules():
        if isinstance(block, Block):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the precision of its weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def group_norm(channels: int, eps: float) -> GroupNorm:
    """Group normalisation with at most 32 groups of at least 4 channels.

    Raises:
        InputError: if the groups do not divide the channels.
    """
    groups = max(1, min(32, channels // 4))
    if channels % groups:
        raise InputError(
            f"model: a layer of {channels} channels does not divide into {groups} groups, change the width"
        )
    return GroupNorm(groups, channels, eps=eps)


class PixelAttention(nn.Module):
    """Self-attention over the pixels, added to its input, (B, C, H, W) -> same.

    Args:
        channels: C, which ``heads`` divides.
        heads: each of C / heads channels.
        eps: of the group normalisation.
        init: initialises the map to queries, keys and values and returns it; the map out of them starts at zero.
    """

    def __init__(self, channels: int, heads: int, eps: float, init: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        if channels % heads:
            raise InputError(f"model: {channels} channels with attention do not divide into {heads} heads")
        self.heads = heads
        self.norm = group_norm(channels, eps)
        self.qkv = init(nn.Conv2d(channels, 3 * channels, 1))
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        # The output channels of qkv are ordered (head, channel of the head, {q, k, v}).
        qkv = self.qkv(self.norm(x)).reshape(b, self.heads, c // self.heads, 3, height * width)
        # Contiguous, or the fused kernels do not take them: each (B, heads, H*W, C/heads).
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(2, 3).reshape(b, c, height, width))


def upsample(x: Tensor) -> Tensor:
    """Nearest-neighbour doubling, (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Mean over 2x2 squares, (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill with U(-b, b), b = sqrt(3 scale / fan_avg); returns ``weight``. Scale 0 stands for 1e-10."""
    receptive = weight[0, 0].numel()
    fan_avg = 0.5 * (weight.shape[0] + weight.shape[1]) * receptive
    bound = math.sqrt(3.0 * (scale or 1e-10) / fan_avg)
    return nn.init.uniform_(weight, -bound, bound)


def init_layer(layer: Weighted, scale: float = 1.0) -> Weighted:
    """Variance-scaled weight and zero bias for a linear or convolutional ``layer``, which is returned."""
    variance_scaling_(layer.weight, scale)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


def zero_init(layer: nn.Module) -> nn.Module:
    """Set all parameters of ``layer`` to zero; returns it. A zero last layer starts a block as the identity."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def check_labels(labels: Tensor | None, num_classes: int) -> None:
    """Raise InputError if labels are given to a network without classes."""
    if labels is not None and not num_classes:
        raise InputError("this network has no classes: call it without labels")


def full_precision(x: Tensor) -> torch.autocast:
    """A context without autocast on the device of ``x``: embeddings of the noise level are not for half precision."""
    return torch.autocast(x.device.type, enabled=False)


def check_levels(image_size: int, num_levels: int) -> None:
    """Raise InputError unless every level but the last can halve the image."""
    if image_size % 2 ** (num_levels - 1):
        raise InputError(
            f"data.image_size={image_size} is not divisible by {2 ** (num_levels - 1)}, "
            f"which a network of {num_levels} levels needs"
        )


def divide_by_sigma(h: Tensor, sigma: Tensor) -> Tensor:
    """Turn the output of a network, (B, C, H, W), into a score; type promotion makes it float32 or wider."""
    return h / sigma.reshape(-1, 1, 1, 1)

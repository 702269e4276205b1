"""Layers, initialisers and checks that several networks share."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.errors import InputError

Weighted = TypeVar("Weighted", nn.Linear, nn.Conv2d)  # a layer with weight and bias
Resample = Callable[[Tensor], Tensor] | None  # upsample, downsample, or None for the same resolution


class Network(nn.Module):
    """Base class of the networks: (x, sigma, labels) -> raw output, which a parametrization converts to a score.

    ``x`` and the output are (B, *data_shape). For a parametrization with several outputs for each value of the data,
    the output has as many times the first axis of the data: a constructor that takes ``num_outputs`` is told how many.
    Noise levels ``sigma`` are (B,). ``labels`` are int64 (B,), -1 where an item has no class; None if and only if
    ``num_classes`` is 0.

    Args:
        data_shape: shape of one item of the data, such as (C, H, W).
        num_classes: number of classes; 0 for a network without classes.
    """

    def __init__(self, data_shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.num_classes = num_classes


class Block(nn.Module):
    """Base class of the blocks of a network, (features, embedding) -> features; see ``recompute_activations``."""


def recompute_activations(net: nn.Module) -> None:
    """Turn on activation checkpointing (Chen et al. 2016) for every ``Block`` of ``net``, in place.

    The forward pass keeps the inputs of each block, and the backward pass computes its activations again. The gradient
    is the same, dropout included, for a third more time and much less memory.
    """
    for block in net.modules():
        if isinstance(block, Block):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the precision of the weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def group_norm(channels: int, eps: float) -> GroupNorm:
    """Create a group normalisation with at most 32 groups of at least 4 channels.

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
    """Residual self-attention over the pixels, (B, C, H, W) -> (B, C, H, W).

    Args:
        channels: number of channels, C, divisible by ``heads``.
        heads: number of attention heads, each of C / heads channels.
        eps: epsilon of the group normalisation.
        init: function that initialises the layer of queries, keys and values and returns it; the output layer starts
            at zero.

    Raises:
        InputError: if ``heads`` does not divide ``channels``.
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
        # Each (B, heads, H*W, C/heads); contiguous, as the fused kernels require.
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(2, 3).reshape(b, c, height, width))


def upsample(x: Tensor) -> Tensor:
    """Double the resolution by nearest-neighbour interpolation, (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Halve the resolution by the mean over 2x2 squares, (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill ``weight`` with U(-b, b), b = sqrt(3 scale / fan_avg), and return it; a ``scale`` of 0 stands for 1e-10."""
    receptive = weight[0, 0].numel()
    fan_avg = 0.5 * (weight.shape[0] + weight.shape[1]) * receptive
    bound = math.sqrt(3.0 * (scale or 1e-10) / fan_avg)
    return nn.init.uniform_(weight, -bound, bound)


def init_layer(layer: Weighted, scale: float = 1.0) -> Weighted:
    """Initialise ``layer`` with a variance-scaled weight and zero bias, and return it."""
    variance_scaling_(layer.weight, scale)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


def zero_init(layer: nn.Module) -> nn.Module:
    """Set all parameters of ``layer`` to zero and return it: a zero last layer starts a block as the identity."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Encode labels, int64 (B,), as bool (B, num_classes); the row of the null label -1 is all False."""
    return labels[:, None] == torch.arange(num_classes, device=labels.device)


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of ``x``: half precision is too coarse to embed noise levels."""
    return torch.autocast(x.device.type, enabled=False)


def check_images(data_shape: Sequence[int], network: str) -> int:
    """Return the number of channels of images of shape (C, H, W).

    Raises:
        InputError: for data of another number of axes, naming the ``network``.
    """
    if len(data_shape) != 3:
        raise InputError(f"model={network} is for images (C, H, W), and the data have shape {tuple(data_shape)}")
    return data_shape[0]


def check_square_images(data_shape: Sequence[int], network: str, num_levels: int) -> tuple[int, int]:
    """Return the number of channels and the size of square images that a network of ``num_levels`` levels can halve.

    Raises:
        InputError: for other data, naming the ``network``.
    """
    channels = check_images(data_shape, network)
    size = data_shape[1]
    if size != data_shape[2]:
        raise InputError(f"model={network} is for square images, and the data have shape {tuple(data_shape)}")
    if size % 2 ** (num_levels - 1):
        raise InputError(
            f"data.image_size={size} is not divisible by {2 ** (num_levels - 1)}, "
            f"which a network of {num_levels} levels needs"
        )
    return channels, size

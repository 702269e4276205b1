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

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Weighted = TypeVar("Weighted", bound=nn.Linear | Convolution)  # a layer with weight and bias
Resample = Callable[[Tensor], Tensor] | None  # upsample, downsample, or None for the same resolution


class Network(nn.Module):
    """Base class of the networks: (x, sigma, labels) -> raw output, which a parametrization converts to a score.

    ``x`` and the output are (B, *data_shape). For a parametrization with several outputs for each value of the data,
    the output has as many times the first axis of the data: a constructor that takes ``num_outputs`` is told how many.
    Noise levels ``sigma`` are (B,). ``labels`` are classes, int64 (B,), -1 where an item has no class; or for a network
    with ``cond_size`` K > 0 conditions, float32 (B, K), NaN where an item has none; None if and only if ``num_classes``
    and ``cond_size`` are 0. A network has classes or a condition, not both.

    A network whose constructor takes ``augment_size`` has a fourth argument, None by default: what was done to each
    image, float32 (B, augment_size), from ``datasets.augmentation.augment``; None for nothing, as zeros.

    Args:
        data_shape: shape of one item of the data, such as (C, H, W).
        num_classes: number of classes; 0 for a network without classes.
        cond_size: number of values of the condition; 0 for a network without a condition.
    """

    def __init__(self, data_shape: Sequence[int], num_classes: int = 0, cond_size: int = 0) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.num_classes = num_classes
        self.cond_size = cond_size


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


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the precision of the weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


# By the number of axes of the data after the channels.
CONVOLUTIONS: dict[int, type[Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def to_channels_last(net: nn.Module) -> None:
    """Give the four-dimensional tensors of ``net`` the memory format in which two-dimensional convolutions are fastest.

    ``net.to(memory_format=torch.channels_last)`` refuses the weights of three-dimensional convolutions.
    """
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def append_axes(features: Tensor, like: Tensor) -> Tensor:
    """Reshape features (B, C) to (B, C, 1, ...), so that they broadcast against ``like`` (B, C, ...)."""
    return features.reshape(*features.shape, *[1] * (like.ndim - 2))


class PixelAttention(nn.Module):
    """Residual self-attention over all positions, such as the pixels of an image, (B, C, ...) -> (B, C, ...).

    Args:
        axes: number of axes after the channels, 1 to 3.
        channels: number of channels, C, divisible by ``heads``.
        heads: number of attention heads, each of C / heads channels.
        eps: epsilon of the group normalisation.
        init: function that initialises the layer of queries, keys and values and returns it; the output layer starts
            at zero.

    Raises:
        InputError: if ``heads`` does not divide ``channels``.
    """

    def __init__(
        self, axes: int, channels: int, heads: int, eps: float, init: Callable[[nn.Module], nn.Module]
    ) -> None:
        super().__init__()
        if channels % heads:
            raise InputError(f"model: {channels} channels with attention do not divide into {heads} heads")
        self.heads = heads
        self.norm = group_norm(channels, eps)
        self.qkv = init(CONVOLUTIONS[axes](channels, 3 * channels, 1))
        self.out = zero_init(CONVOLUTIONS[axes](channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, *sides = x.shape
        # The output channels of qkv are ordered (head, channel of the head, {q, k, v}).
        qkv = self.qkv(self.norm(x)).reshape(b, self.heads, c // self.heads, 3, math.prod(sides))
        # Each (B, heads, positions, C/heads); contiguous, as the fused kernels require.
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(2, 3).reshape(x.shape))


def upsample(x: Tensor) -> Tensor:
    """Double each side by nearest-neighbour interpolation, such as (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Halve each side by the mean over neighbours, such as 2x2 squares, (B, C, H, W) -> (B, C, H/2, W/2)."""
    return AVERAGE_POOLS[x.ndim - 2](x, 2)


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


def augmentation_embedding(augment_size: int, embedding: int) -> nn.Linear:
    """Create the embedding of what was done to an image, (B, augment_size) -> (B, embedding), zeros for nothing.

    Its weights are as large as those of a class: with smaller ones a short training does not learn to tell augmented
    images from others, and draws both.
    """
    layer = nn.Linear(augment_size, embedding, bias=False)
    nn.init.normal_(layer.weight)
    return layer


def condition_features(cond: Tensor) -> Tensor:
    """Encode conditions (B, K) as features (B, 2K): the values, 0 for NaN, and indicators that are 1 for NaN."""
    unknown = cond.isnan()
    return torch.cat([torch.where(unknown, 0.0, cond), unknown.to(cond.dtype)], dim=1)


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of ``x``: half precision is too coarse to embed noise levels."""
    return torch.autocast(x.device.type, enabled=False)


def check_axes(data_shape: Sequence[int], network: str) -> tuple[int, Sequence[int]]:
    """Return the number of channels and the sides of data (C, L), (C, H, W) or (C, D, H, W).

    Raises:
        InputError: for data of another number of axes, naming the ``network``.
    """
    channels, *sides = data_shape
    if len(sides) not in CONVOLUTIONS:
        raise InputError(
            f"model={network} is for data (C, L), (C, H, W) or (C, D, H, W), "
            f"and the data have shape {tuple(data_shape)}"
        )
    return channels, sides


def check_divisible(data_shape: Sequence[int], num_levels: int) -> None:
    """Raise InputError unless a network of ``num_levels`` levels can halve every side of data (C, ...)."""
    sides, divisor = data_shape[1:], 2 ** (num_levels - 1)
    for side in sides:
        if side % divisor:
            square = len(sides) == 2 and sides[0] == sides[1]
            key = f"data.image_size={side} (or " if square else ""
            raise InputError(
                f"{key}a side of {side} in data.shape={list(data_shape)}{')' * square} is not divisible by {divisor}, "
                f"which a network of {num_levels} levels needs"
            )


def check_square_images(data_shape: Sequence[int], network: str, num_levels: int) -> tuple[int, int]:
    """Return the number of channels and the size of square images that a network of ``num_levels`` levels can halve.

    Raises:
        InputError: for other data, naming the ``network``.
    """
    if len(data_shape) != 3 or data_shape[1] != data_shape[2]:
        raise InputError(f"model={network} is for square images, and the data have shape {tuple(data_shape)}")
    check_divisible(data_shape, num_levels)
    return data_shape[0], data_shape[1]

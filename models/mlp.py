"""A residual network of linear layers, for vectors: rows of a table, or any data taken as a vector."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Block, LayerNorm, Network, condition_features, full_precision, one_hot, zero_init
from models.options import NumBlocks, Width
from utils.options import Probability

EPS = 1e-6  # epsilon of every layer normalisation
FREQUENCIES = 32  # of the sines and cosines of log sigma
LOWEST, HIGHEST = 0.125, 2.0  # radians for a factor of e of sigma
# Of the sines and cosines of the data, in radians for a unit of the input: with x alone, the scores of narrow modes in
# two dimensions are learned several times more slowly.
DATA_FREQUENCIES = (1.0, 2.0, 4.0)


class ResidualBlock(Block):
    """Two linear layers, (B, width) -> (B, width); the embedding scales and shifts the normalisation before them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width, EPS)
        self.affine = zero_init(nn.Linear(width, 2 * width))
        self.linear1 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.affine(embedding).chunk(2, dim=1)
        h = shift + self.norm(x) * (scale + 1.0)
        return x + self.linear2(self.dropout(F.silu(self.linear1(F.silu(h)))))


class MLP(Network):
    """Residual network of linear layers, with or without classes or a condition; see ``Network``.

    Args:
        data_shape: shape of the data, (D,), or any other, which is taken as a vector.
        num_classes: number of classes; 0 for a network without classes.
        cond_size: number of values of the condition; 0 for a network without a condition.
        num_inputs: number of inputs for each value of the data.
        num_outputs: number of outputs for each value of the data.
        width: number of features of every layer.
        num_blocks: number of residual blocks.
        dropout: probability that a feature is dropped in training, in [0, 1).
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_classes: int = 0,
        cond_size: int = 0,
        *,
        num_inputs: int = 1,
        num_outputs: int = 1,
        width: Width = 256,
        num_blocks: NumBlocks = 3,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__(data_shape, num_classes, cond_size)
        dimension = math.prod(data_shape)
        self.num_inputs = num_inputs
        self.embed1 = nn.Linear(2 * FREQUENCIES, width)
        self.embed2 = nn.Linear(width, width)
        if num_classes:
            self.embed_label = nn.Linear(num_classes, width, bias=False)
            nn.init.normal_(self.embed_label.weight)  # one row enters at a time: no fan-in to divide by
        if cond_size:
            self.embed_cond = nn.Sequential(nn.Linear(2 * cond_size, width), nn.SiLU(), nn.Linear(width, width))
        self.linear_in = nn.Linear((num_inputs + 2 * len(DATA_FREQUENCIES)) * dimension, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, dropout) for _ in range(num_blocks))
        self.norm_out = LayerNorm(width, EPS)
        self.linear_out = zero_init(nn.Linear(width, num_outputs * dimension))

    def embed(self, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Embed noise level, and class or condition, as (B, width)."""
        powers = torch.arange(FREQUENCIES, dtype=sigma.dtype, device=sigma.device) / (FREQUENCIES - 1)
        angle = sigma.log()[:, None] * (LOWEST * (HIGHEST / LOWEST) ** powers)
        h = self.embed2(F.silu(self.embed1(torch.cat([angle.cos(), angle.sin()], dim=1))))
        if labels is not None and self.cond_size:
            h = h + self.embed_cond(condition_features(labels.to(sigma.dtype)))
        elif labels is not None:
            h = h + self.embed_label(one_hot(labels, self.num_classes).to(sigma.dtype))
        return F.silu(h)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the raw output; see ``Network``."""
        with full_precision(x):
            embedding = self.embed(sigma, labels)
            data, *others = x.chunk(self.num_inputs, dim=1)
            centred = data.flatten(1) - 0.5  # parametrizations centre the data at 1/2
            angle = torch.cat([centred * frequency for frequency in DATA_FREQUENCIES], dim=1)
            features = torch.cat([centred, angle.sin(), angle.cos(), *(other.flatten(1) for other in others)], dim=1)

        h = self.linear_in(features)
        for block in self.blocks:
            h = block(h, embedding)
        # The outputs of a value follow one another along the first axis of the data.
        return self.linear_out(F.silu(self.norm_out(h))).reshape(len(x), -1, *self.data_shape[1:])

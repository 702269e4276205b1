"""Classifier-free guidance (Ho & Salimans 2022)."""

from collections.abc import Callable

import torch
from torch import Tensor

from models import null_like


def guided_score(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor], labels: Tensor | None = None, w: float = 0.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return score_fn(x, sigma) = (1 + w) net(x, sigma, labels) - w net(x, sigma, null).

    Both terms are evaluated in one batch of twice the size; w = 0 costs one evaluation of the plain size.

    Args:
        net: score network, called as net(x, sigma, labels).
        labels: classes of the samples, int64 (B,), or conditions, float32 (B, K); None for a network without both.
        w: guidance weight; 0 is the conditional score itself.
    """
    if labels is None or w == 0:
        return lambda x, sigma: net(x, sigma, labels)
    both = torch.cat([labels, null_like(labels)])

    def score_fn(x: Tensor, sigma: Tensor) -> Tensor:
        conditional, null = net(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return torch.lerp(null, conditional, 1.0 + w)

    return score_fn

"""Mixed precision, an option of training and sampling rather than of a network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.checks import OneOf

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Raise InputError unless ``precision`` is one of ``PRECISIONS``."""
    OneOf(tuple(PRECISIONS))("precision", precision)


def in_precision(net: nn.Module, precision: str) -> Callable[..., Tensor]:
    """``net`` under autocast to ``precision``: fp32 (the network itself), bf16 or fp16.

    Convolutions, linear maps and attention run in half precision; group normalisations, the embedding of the noise
    level and the division by sigma stay in float32, and so does the score that comes out.

    Raises:
        InputError: for another precision.
    """
    check_precision(precision)
    if precision == "fp32":
        return net

    def under_autocast(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, PRECISIONS[precision]):
            score = net(x, sigma, labels)
        return score.float()  # it is in half precision where a linear map or a convolution comes last

    return under_autocast

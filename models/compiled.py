"""Compilation, an option of training and sampling rather than of a network."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.errors import InputError

FEWEST = 16  # rows: for fewer, torch chooses other convolutions on a CPU, and one alone is a case of its own


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` of tensors (B, ...) and Nones, row by row, compiled to one graph that takes batches of any size."""
    fast = torch.compile(function, fullgraph=True, dynamic=False)

    @functools.wraps(function)
    def for_any_batch(*arguments: Tensor | None) -> Tensor:
        rows = next(len(tensor) for tensor in arguments if tensor is not None)
        tensors = [None if tensor is None else _uniform(tensor) for tensor in arguments]
        return fast(*tensors)[:rows]

    return for_any_batch


def _uniform(tensor: Tensor) -> Tensor:
    """Without what is compiled for anew: a small or another size, and the strides that a sampler's steps leave."""
    rows = len(tensor)
    if rows < FEWEST:
        tensor = tensor[torch.arange(FEWEST, device=tensor.device).clamp(max=rows - 1)]
    tensor = tensor.flatten().view(tensor.shape)  # contiguous() leaves the stride of an axis of length 1
    torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensor


def compile_network(net: nn.Module) -> None:
    """Compile ``net`` in place, when it is first called: once for training and once for evaluation.

    Raises:
        InputError: at once, where torch cannot compile: for a CPU it needs a C++ compiler, for a GPU Triton.
    """
    _check_compiler(next(net.parameters()).device.type)
    net.forward = compiled(net.forward)


@functools.cache
def _check_compiler(device: str) -> None:
    try:
        compiled(torch.neg)(torch.ones(FEWEST, device=device))
    except Exception as error:  # of many kinds, from the search for a compiler to what that prints
        reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
        raise InputError(f"compile=True, but torch cannot compile here: {reason}") from error

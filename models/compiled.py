"""Compilation of networks and functions by ``torch.compile``, for batches of any size."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.errors import InputError

MIN_ROWS = 16  # for fewer rows torch chooses other convolutions on a CPU, and it compiles anew for one row


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function to one graph for batches of any size.

    Args:
        function: function of tensors (B, ...) and Nones that returns a tensor (B, ...), each row from the same rows.
    """
    fast = torch.compile(function, fullgraph=True, dynamic=False)

    @functools.wraps(function)
    def for_any_batch(*arguments: Tensor | None) -> Tensor:
        rows = next(len(tensor) for tensor in arguments if tensor is not None)
        tensors = [None if tensor is None else _normalize_layout(tensor) for tensor in arguments]
        return fast(*tensors)[:rows]

    return for_any_batch


def _normalize_layout(tensor: Tensor) -> Tensor:
    """Return ``tensor`` padded to ``MIN_ROWS`` and contiguous: another layout would be compiled for anew."""
    rows = len(tensor)
    if rows < MIN_ROWS:
        tensor = tensor[torch.arange(MIN_ROWS, device=tensor.device).clamp(max=rows - 1)]
    tensor = tensor.flatten().view(tensor.shape)  # contiguous() leaves the stride of an axis of length 1
    torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensor


def compile_network(net: nn.Module) -> None:
    """Compile ``net`` in place at its first call: once for training and once for evaluation.

    Raises:
        InputError: at once, if torch cannot compile: it needs a C++ compiler for a CPU, and Triton for a GPU.
    """
    _check_compiler(next(net.parameters()).device.type)
    net.forward = compiled(net.forward)


@functools.cache
def _check_compiler(device: str) -> None:
    try:
        compiled(torch.neg)(torch.ones(MIN_ROWS, device=device))
    except Exception as error:  # of many types, from the search for a compiler to the compiler's own output
        reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
        raise InputError(f"compile=True, but torch cannot compile here: {reason}") from error

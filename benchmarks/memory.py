"""Peak memory of tensors: counted by the allocator on a GPU, and by a dispatch mode on a CPU."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """A counter of the bytes of all live tensors made by operations within the context; a view counts as its base."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._references: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if not isinstance(t, torch.Tensor):
                continue
            key = t.untyped_storage().data_ptr()
            if key in self._references or key not in given:
                self._track(t, key, t.untyped_storage().nbytes())
        return result

    def _track(self, tensor: torch.Tensor, key: int, size: int) -> None:
        self.live += size * (not self._references[key])
        self.peak = max(self.peak, self.live)
        self._references[key] += 1

        def release() -> None:
            self._references[key] -= 1
            if not self._references[key]:
                del self._references[key]
                self.live -= size

        weakref.finalize(tensor, release)


def peak_bytes(act: Callable[[], object]) -> int:
    """Measure the peak memory, in bytes, of the tensors that ``act`` makes; on a GPU existing tensors are included."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        act()
        return torch.cuda.max_memory_allocated()
    with PeakMemory() as memory:
        act()
    return memory.peak

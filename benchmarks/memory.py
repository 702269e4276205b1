"""How much memory tensors take: a GPU counts it, on a CPU the operations are watched."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once, made by the operations within; a view counts as its base."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if not isinstance(t, torch.Tensor):
                continue
            key = t.untyped_storage().data_ptr()
            if key in self._holders or key not in given:
                self._hold(t, key, t.untyped_storage().nbytes())
        return result

    def _hold(self, tensor: torch.Tensor, key: int, size: int) -> None:
        self.live += size * (not self._holders[key])
        self.peak = max(self.peak, self.live)
        self._holders[key] += 1

        def release() -> None:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self.live -= size

        weakref.finalize(tensor, release)


def peak_bytes(act: Callable[[], object]) -> int:
    """The most bytes that tensors made by ``act`` take at once; on a GPU with those that were there."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        act()
        return torch.cuda.max_memory_allocated()
    with PeakMemory() as memory:
        act()
    return memory.peak

"""Extensions of PyTorch's restricted unpickler: NumPy scalars, and error messages that name the refused object.

The restricted unpickler reads tensors, containers, strings and Python numbers. Checkpoints of the published code also
hold NumPy scalars, because its step multiplies the learning rate by ``np.minimum(...)``. Substitutes for the functions
that such a pickle calls return Python numbers, so that none of NumPy's own unpickling code runs.
"""

import io
import pickle
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUMBER_TYPE = re.compile(r"(b1|[iu][1248]|f[248]|f12|f16|c8|c16|c24|c32)")  # NumPy type codes: kind and size in bytes


class NumberType:
    """Substitute for ``numpy.dtype``: the type and byte order of a number.

    Raises:
        UnpicklingError: for any other type, such as one of objects or of records.
    """

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not NUMBER_TYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"a numpy.dtype of {code!r}, which is not that of a number")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: object) -> None:
        """Set the byte order, the second value of the state that NumPy stores."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a numpy.dtype of an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


def number(number_type: object, data: object) -> complex | bool:
    """Return the Python number that ``data`` encodes; substitute for ``numpy.core.multiarray.scalar``.

    Args:
        number_type: type of the number, a ``NumberType``.
        data: bytes of the number.

    Raises:
        UnpicklingError: if the arguments are of other types.
    """
    if not isinstance(number_type, NumberType) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar that is not a number")
    if len(data) != number_type.dtype.itemsize:
        raise pickle.UnpicklingError("a numpy scalar of the wrong size")
    value = np.frombuffer(data, number_type.dtype)[0]
    kinds: dict[str, Callable[[Any], complex | bool]] = {"b": bool, "i": int, "u": int, "f": float, "c": complex}
    return kinds[number_type.dtype.kind](value)  # item() would return a long double unchanged


# NumPy 2 renamed numpy.core to numpy._core.
SUBSTITUTES: list[Callable | tuple[Callable, str]] = [
    (NumberType, "numpy.dtype"),
    (number, "numpy.core.multiarray.scalar"),
    (number, "numpy._core.multiarray.scalar"),
]


def find_refused(path: Path) -> str | None:
    """Name the first object in a checkpoint that the restricted unpickler refuses, and its place.

    The structure is read with a placeholder for every function and type, so that nothing is imported or called.

    Args:
        path: path of a checkpoint, a ZIP archive of ``torch.save``.

    Returns:
        For instance ``"numpy.ndarray in optimizer.param_groups[0].lr"``; None if no such object is found.
    """
    refused: list[str] = []
    try:
        with torch.serialization.safe_globals(SUBSTITUTES):
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with zipfile.ZipFile(path) as archive:
            inner = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            tree = _PlaceholderUnpickler(io.BytesIO(archive.read(inner))).load()
        for place, item in _walk(tree):
            if name := _refused_name(item, refused):
                return f"{name} in {place}" if place else name
    except Exception:  # a damaged pickle raises exceptions of any type; then only the refused name is reported
        pass
    return refused[0] if refused else None


class _Placeholder:
    """Placeholder for the result of calling ``called``, MODULE.NAME, with ``arguments``."""

    called = ""
    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: object, **_: object) -> "_Placeholder":
        self = super().__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __call__(self, *_: object) -> "_Placeholder":
        return self

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Ignore an item of a subclass of list."""


def _refused_name(item: object, refused: list[str]) -> str | None:
    """Name ``item`` if a ``refused`` function made it, or it is a NumPy scalar that is not a number; else None."""
    if isinstance(item, type) and issubclass(item, _Placeholder):  # a class or function itself
        return item.called
    if not isinstance(item, _Placeholder):
        return None
    first = item.arguments[0] if item.arguments else None
    if item.called in refused:
        if isinstance(first, type) and issubclass(first, _Placeholder) and item.called.endswith("._reconstruct"):
            return first.called  # NumPy passes the class of an array to a function that makes it
        return item.called
    if item.called.endswith(".multiarray.scalar") and isinstance(first, _Placeholder) and first.arguments:
        code = str(first.arguments[0])
        return None if NUMBER_TYPE.fullmatch(code) else f"a numpy scalar of type {code}, not a number,"
    return None


class _PlaceholderUnpickler(pickle._Unpickler):
    """Read the structure of a pickle without importing any name.

    The base class is the implementation in Python: the one in C allocates as much memory as a pickle claims to need.
    """

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        # Protocol 2 has the names of Python 2: translate them to Python 3, as PyTorch does.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        return type("_Named", (_Placeholder,), {"called": f"{module}.{name}"})

    def persistent_load(self, _: object) -> None:
        """Skip the storage of a tensor."""


def _walk(tree: object) -> Iterator[tuple[str, object]]:
    """Yield all objects in nested containers with their places, such as ``optimizer.param_groups[0].lr``."""
    seen, waiting = set(), [("", tree)]
    while waiting:
        place, item = waiting.pop()
        yield place, item
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            inner = [(_below(place, key), value) for key, value in item.items()]
            inner += [(f"a key of {place or 'it'}", key) for key in item]
        elif isinstance(item, list | tuple | set):
            inner = [(f"{place}[{index}]", value) for index, value in enumerate(item)]
        else:
            continue
        waiting += reversed(inner)


def _below(place: str, key: object) -> str:
    if isinstance(key, str):
        return f"{place}.{key}" if place else key
    return f"{place}[{key if isinstance(key, int) else type(key).__name__}]"

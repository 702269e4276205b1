"""Reading the JSON files of a run, which is untrusted, within bounds."""

import json
from pathlib import Path
from typing import Any

from utils.errors import InputError

MAX_BYTES = 2**24
MAX_DEPTH = 20


def read_object(path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: file.
        keys: keys that it must have.

    Raises:
        InputError: if it cannot be read, or is no such object.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise InputError("it is not a file, or too long")
        contents = json.loads(path.read_text())
        if not isinstance(contents, dict):
            raise InputError("it is no object")
        _check_depth(contents, MAX_DEPTH)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    for key in keys:
        if key not in contents:
            raise InputError(f"{path} has no {key}")
    return contents


def _check_depth(tree: Any, depth: int) -> None:
    if not depth:
        raise InputError("it is nested too deep")
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        _check_depth(item, depth - 1)

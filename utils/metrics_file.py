"""Reading ``metrics.jsonl``, the metrics of a run by step, one JSON object a line."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_LINE = 2**14  # characters; an entry has some hundreds


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a ``metrics.jsonl``, without a last line that a kill left half written.

    Args:
        path: file, which need not exist.

    Returns:
        Entries with an integer ``step`` and a ``loss``.
    """
    entries: list[dict[str, Any]] = []
    if not path.exists():
        return entries
    with path.open(errors="replace") as file:
        for line in iter(lambda: file.readline(MAX_LINE), ""):
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry["step"], int) and isinstance(entry["loss"], float):
                    entries.append(entry)
    return entries

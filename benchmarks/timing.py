"""Interleaved timing: alternatives are measured in turn, so that their ratios are comparable."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Measure each function in turn, ``repeats`` times over, after ``warm`` calls of each.

    Args:
        ways: functions by name.
        repeats: number of measurements of each.
        warm: number of calls before the first measurement.

    Returns:
        Times in seconds, by name.
    """
    for way in ways.values():
        for _ in range(warm):
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            _wait()
            start = time.perf_counter()
            way()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: Mapping[str, list[float]], base: str, unit: str = "ms") -> str:
    """Format a line for each entry: median, range, and the median ratio of ``base`` to it in the same repeat."""
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    width = max(map(len, seconds))
    lines = []
    for name, seen in seconds.items():
        ratio = statistics.median(b / s for b, s in zip(seconds[base], seen, strict=True))
        limits = f"({min(seen) * scale:.3g} to {max(seen) * scale:.3g})"
        lines.append(f"  {name:{width}}  {statistics.median(seen) * scale:9.3g} {unit} {limits:22}  x {ratio:.2f}")
    return "\n".join(lines)


def device_name() -> str:
    """Return the name of the GPU, or of the CPU with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "CPU"
    return f"{model}, {torch.get_num_threads()} threads"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

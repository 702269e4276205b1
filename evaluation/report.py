"""The protocol at the beginning of results.json, and the table of its numbers."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from models.io.checkpoint import read_checkpoint
from models.io.ema_snapshots import find_snapshots, snapshots_digest

PACKAGES = ("numpy", "scipy", "pillow", "torch-fidelity", "scikit-learn")


def device_name(device: torch.device) -> str:
    """Return the name of the processor or GPU of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"


def protocol(cfg: DictConfig, checkpoint: Path, devices: list[str]) -> dict[str, Any]:
    """Return the entries of results.json that all metrics of an evaluation have in common.

    Args:
        cfg: configuration of run_eval.py.
        checkpoint: file of the weights.
        devices: names of the devices of all processes.

    Raises:
        InputError: if the snapshots that ``eval.ema`` needs are missing or damaged.
    """
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    weights = {"weights": "exponential moving average" if cfg.eval.weights == "ema" else "not averaged"}
    if cfg.eval.ema is not None and checkpoint.suffix != ".safetensors":
        infos = find_snapshots(checkpoint.parent.parent, read_checkpoint(checkpoint).get("step"), checkpoint)
        weights["weights"] = f"power-function average of relative length {cfg.eval.ema}"
        weights["snapshots_sha256"] = snapshots_digest(infos)
    return {
        "checkpoint": {"file": str(checkpoint), "sha256": digest, **weights},
        "seed": cfg.seed,
        "precision": cfg.precision,
        "compile": cfg.compile,
        "devices": devices,
        "cuda": torch.version.cuda if cfg.device == "cuda" else None,
        "packages": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in PACKAGES},
        },
    }


def table(results: dict[str, Any]) -> str:
    """Format the numbers, a line each: name, value, error, and number of images or kind of error."""
    rows = [("metric", "value", "+-", "of")]
    for name, result in results["metrics"].items():
        error = result.get("error")
        count = result.get("note") or f"{result.get('drawn', result.get('images'))} images"
        notes = [count if error is None else result["error_is"], *filter(None, [result.get("unit")])]
        rows.append((name, f"{result['value']:.5g}", "" if error is None else f"{error:.2g}", "; ".join(notes)))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    return "\n".join("  ".join([*(row[k].ljust(widths[k]) for k in range(3)), row[3]]) for row in rows)

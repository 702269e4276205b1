"""Plot of the losses of a run, RUN/loss.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import replacing


def draw_losses(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss by step, on held-out images and by quartile of sigma, from the entries of ``metrics.jsonl``."""
    from matplotlib.figure import Figure  # a slow import, only for the process that writes

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    quarters = {"lowest sigma": "blue", "second quarter": "cyan", "third quarter": "green", "highest sigma": "orange"}
    for k, (name, colour) in enumerate(quarters.items()):
        found = [(e["step"], e["loss_by_sigma"][k]) for e in entries if e.get("loss_by_sigma", [None] * 4)[k]]
        axes.plot(*_columns(found), label=name, color=f"tab:{colour}", linewidth=0.8)
    axes.plot(*_columns([(e["step"], e["loss"]) for e in entries]), label="all", color="black")
    held_out = [(e["step"], e["eval_loss"]) for e in entries if "eval_loss" in e]
    axes.plot(*_columns(held_out), label="held out, EMA", color="tab:red", marker=".")
    bottom, _ = axes.get_ylim()  # tiny for a fresh network, which is exact at the highest noise
    axes.set_ylim(bottom=max(bottom, 1e-4 * min((e["loss"] for e in entries), default=0.0)))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [a for a, _ in pairs], [b for _, b in pairs]

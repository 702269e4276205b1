"""Figures of samples that are no images: marginals, pairs, curves, fields and slices, beside those of the data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets import ImageDataset
from utils.errors import printable, replacing

MOST_ROWS = 1000  # rows of the data, or samples, in a figure
MOST_PAIRS = 8  # columns of a pair plot; of more columns there are only the marginals
MOST_COLUMNS = 64  # marginals in a figure
MOST_VIEWS = 9  # channels of curves and fields, and slices of all channels
CURVES, DATA_CURVES = 8, 50
BINS, FEW_BINS, FEW_ROWS = 40, 20, 500  # bins of a histogram, and those of fewer rows than the last
ROOM = 1.6  # height of axes in which bars at the bounds are cut, relative to the highest bar between these
SAMPLES, DATA, DATA_CURVE = "tab:blue", "tab:orange", "0.75"
DPI = 100

View = tuple[str, int, Any]  # title, channel and index in a sample of a picture


@dataclass(frozen=True)
class _Group:
    """Rows that are shown in one colour: samples, or data."""

    name: str
    colour: str
    rows: np.ndarray

    @property
    def label(self) -> str:
        """Return the name in a legend."""
        return "data" if self.colour == DATA else self.name

    def count(self, most: int) -> str:
        """Describe how many of the rows are shown, at most so many."""
        total = len(self.rows)
        return f"{most:,} of {total:,} {self.name}" if most < total else f"{total:,} {self.name}"


def save_figure(
    path: Path,
    samples: np.ndarray,
    reference: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    what: str = "samples",
) -> None:
    """Write the figure of ``draw_figure`` as a PNG."""
    figure = draw_figure(samples, reference, names, what)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def draw_figure(
    samples: np.ndarray, reference: np.ndarray | None = None, names: Sequence[str] | None = None, what: str = "samples"
) -> Any:
    """Draw a figure of samples, of a kind that their shape determines.

    Shapes (D,) with D up to ``MOST_PAIRS`` give a pair plot with the marginals on its diagonal, larger ones and those
    of more than four axes marginals only; (C, L) curves; (C, H, W) fields; (C, D, H, W) the middle slices along each
    axis. The bars of a marginal are shares of the rows. Where a bar at a bound is far higher than those between the
    bounds, it is cut, and labelled with its share.

    Args:
        samples: values in any units, (N, *shape).
        reference: rows of the data to compare with, (M, *shape), or None.
        names: names of the columns or channels; None, or a list of another length, for their numbers.
        what: what ``samples`` are, for the title.

    Returns:
        A matplotlib ``Figure``.
    """
    from matplotlib.figure import Figure  # a slow import, only for the process that writes

    shape = samples.shape[1:]
    chosen = names if names and len(names) == shape[0] else range(shape[0])
    names = [printable(str(name)).replace("$", "\\$") for name in chosen]  # a $ begins a formula
    samples, reference = map(_without_bool, (samples, reference))
    groups = [_Group(what, SAMPLES, samples)]
    if reference is not None:
        groups.append(_Group("rows of data", DATA, reference))
    figure, shown, part = Figure(layout="constrained"), [MOST_ROWS] * len(groups), ""
    if len(shape) == 1 and shape[0] <= MOST_PAIRS:
        _draw_pairs(figure, groups, names)
    elif len(shape) == 2:
        part = _draw_curves(figure, groups, names)
        shown = [CURVES, DATA_CURVES][: len(groups)]
    elif len(shape) in (3, 4):
        views = _slices(shape, names)
        part = _draw_pictures(figure, groups, views)
        shown = [math.prod(_layout(groups, views))] * len(groups)
    else:
        part = _draw_marginals(figure, groups, names if len(shape) == 1 else range(math.prod(shape)))
    counts = [group.count(most) for group, most in zip(groups, shown, strict=True)]
    figure.suptitle(" beside ".join(counts) + part, fontsize=10, x=0.01, horizontalalignment="left")
    return figure


def _without_bool(rows: np.ndarray | None) -> Any:
    """Return truth values as 0 and 1, which numpy's histograms need."""
    return rows.astype(np.uint8) if rows is not None and rows.dtype == bool else rows


def data_rows(images: ImageDataset, most: int = MOST_ROWS) -> np.ndarray:
    """Return up to ``most`` rows of a data set, evenly spaced, in its units; without units, in the cube."""
    chosen = images.data[:: max(1, math.ceil(len(images) / most))]
    return (chosen if images.units is not None else images.normalize(chosen)).numpy()


def _draw_pairs(figure: Any, groups: Sequence[_Group], names: Sequence[str]) -> None:
    count = len(names)
    size = 1.2 + max(1.5, 2.2 - 0.1 * count) * count
    figure.set_size_inches(*(6.0, 4.0) if count == 1 else (size, size))
    axes = figure.subplots(count, count, squeeze=False)
    rows = [group.rows[:MOST_ROWS] for group in groups]
    for i, j in np.ndindex(count, count):
        panel = axes[i, j]
        if j > i:
            panel.set_visible(False)
            continue
        x, y = ([of_group[:, column] for of_group in rows] for column in (j, i))
        if i == j:
            _draw_marginal(panel, x, groups)
            panel.yaxis.tick_right()
            panel.yaxis.set_label_position("right")
            panel.set_ylabel("share" if i == count - 1 else "", fontsize=8)
        else:
            for k in reversed(range(len(groups))):
                style = {"color": groups[k].colour, "alpha": 0.5, "markeredgewidth": 0, "clip_on": False}
                panel.plot(x[k], y[k], ".", markersize=4 if len(x[k]) > FEW_ROWS else 6, **style)
            panel.set_xlim(*_edges(x)[[0, -1]])
            panel.set_ylim(*_edges(y)[[0, -1]])
            panel.set_ylabel(names[i] if j == 0 else "")
        panel.set_xlabel(names[j] if i == count - 1 else "")
        panel.tick_params(labelsize=8, labelbottom=i == count - 1, labelleft=i > j == 0)
    _legend(figure, groups)


def _draw_marginals(figure: Any, groups: Sequence[_Group], names: Sequence[object]) -> str:
    shown = min(len(names), MOST_COLUMNS)
    across = math.ceil(math.sqrt(shown))
    down = math.ceil(shown / across)
    figure.set_size_inches(1.0 + 1.6 * across, 1.0 + 1.35 * down)
    axes = figure.subplots(down, across, squeeze=False)
    for number, panel in enumerate(axes.flat):
        if number >= shown:
            panel.set_visible(False)
            continue
        columns = [group.rows[:MOST_ROWS].reshape(-1, len(names))[:, number] for group in groups]
        _draw_marginal(panel, columns, groups)
        panel.set_title(str(names[number]), fontsize=8, pad=3)
        panel.tick_params(labelsize=7, length=2)
    _legend(figure, groups)
    return f", {shown} of {len(names)} columns" if shown < len(names) else ""


def _draw_marginal(panel: Any, columns: Sequence[np.ndarray], groups: Sequence[_Group]) -> None:
    """Draw histograms of one column; its bins are the same for all groups."""
    edges = _edges(columns)
    shares = [np.histogram(column, edges)[0] / len(column) for column in columns]
    for share, group in zip(shares, groups, strict=True):
        filled = group.colour == SAMPLES
        panel.stairs(share, edges, fill=filled, color=group.colour, alpha=0.6 if filled else 1.0, linewidth=1.2)
    between = max(share[1:-1].max(initial=0.0) for share in shares)
    highest = max(share.max() for share in shares)
    top = ROOM * between if between and highest > 2.0 * ROOM * between else 1.05 * highest
    panel.set_ylim(0.0, top)
    panel.set_xlim(edges[0], edges[-1])
    for end, place, side, shift in ((0, edges[1], "left", 2), (-1, edges[-2], "right", -2)):
        if max(share[end] for share in shares) <= top:
            continue
        for line, (share, group) in enumerate(zip(shares, groups, strict=True)):
            panel.annotate(
                f"{100 * share[end]:.0f} %",
                (place, top),
                (shift, -2 - 8 * line),
                textcoords="offset points",
                horizontalalignment=side,
                verticalalignment="top",
                fontsize=7,
                color=group.colour,
            )


def _edges(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return the edges of the bins for all values together: one bin for each of a few integers."""
    low, high = _ends(columns)
    if all(column.dtype.kind in "iu" for column in columns) and high - low < BINS:
        return np.arange(low - 0.5, high + 1.0)
    bins = FEW_BINS if min(map(len, columns)) < FEW_ROWS else BINS
    return np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])


def _ends(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    return min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)


def _legend(figure: Any, groups: Sequence[_Group]) -> None:
    if len(groups) > 1:
        from matplotlib.patches import Patch

        handles = [Patch(color=group.colour, label=group.label) for group in groups]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=9, frameon=False)


def _draw_curves(figure: Any, groups: Sequence[_Group], names: Sequence[str]) -> str:
    shown = min(len(names), MOST_VIEWS)
    figure.set_size_inches(8.0, 1.2 + 2.2 * shown)
    axes = figure.subplots(shown, 1, squeeze=False, sharex=True)[:, 0]
    for channel, panel in enumerate(axes):
        for group in groups[1:]:
            lines = panel.plot(group.rows[:DATA_CURVES, channel].T, color=DATA_CURVE, linewidth=0.6)
            lines[0].set_label(group.label)
        lines = panel.plot(groups[0].rows[:CURVES, channel].T, linewidth=1.2)
        lines[0].set_label(groups[0].label)
        panel.set_ylabel(names[channel] if len(names) > 1 else "value")
        panel.margins(x=0)
        panel.tick_params(labelsize=8)
    axes[-1].set_xlabel("position")
    if len(groups) > 1:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9, frameon=False
        )
    return _channels_shown(shown, len(names))


def _channels_shown(shown: int, count: int) -> str:
    return f", {shown} of {count} channels" if shown < count else ""


def _slices(shape: tuple[int, ...], names: Sequence[str]) -> list[View]:
    """Return the views of a sample: the field of each channel, or its middle slices along three axes."""
    if len(shape) == 3:
        return [(name, channel, channel) for channel, name in enumerate(names)]
    views: list[View] = []
    for channel, name in enumerate(names):
        for axis, length in enumerate(shape[1:]):
            index: list[Any] = [channel, *[slice(None)] * 3]
            index[1 + axis] = length // 2
            views.append((f"{name}, axis {axis + 1}", channel, tuple(index)))
    return views


def _layout(groups: Sequence[_Group], views: Sequence[View]) -> tuple[int, int]:
    """Return how many rows of pictures each group has, and how many samples stand side by side in one."""
    return 4 if len(groups) == 1 else 3, 6 // len(views) if views[-1][1] == 0 else 1


def _draw_pictures(figure: Any, groups: Sequence[_Group], views: Sequence[View]) -> str:
    """Draw views of samples, some samples in each row; a channel has one colour scale for all of them."""
    shown = views[:MOST_VIEWS]
    down, across = _layout(groups, views)
    rows = [
        (group, group.rows[k : k + across])
        for group in groups
        for k in range(0, min(down * across, len(group.rows)), across)
    ]
    shapes = [groups[0].rows[0][index].shape for _, _, index in shown]
    tallest = max(height / width for height, width in shapes)
    figure.set_size_inches(1.2 + 1.6 * len(shown) * across, 1.4 + 1.6 * min(tallest, 2.0) * len(rows))
    axes = figure.subplots(len(rows), len(shown) * across, squeeze=False)
    for panel in axes.flat:
        panel.set_visible(False)
    for channel in dict.fromkeys(channel for _, channel, _ in shown):
        low, high = _ends([group.rows[:, channel] for group in groups])
        own = [column for column in range(axes.shape[1]) if shown[column % len(shown)][1] == channel]
        for (line, (group, samples)), column in ((row, column) for row in enumerate(rows) for column in own):
            if column // len(shown) >= len(samples):
                continue
            panel, (title, _, index) = axes[line, column], shown[column % len(shown)]
            panel.set_visible(True)
            panel.set_xticks([])
            panel.set_yticks([])
            image = panel.imshow(samples[column // len(shown)][index], vmin=low, vmax=high, interpolation="nearest")
            if line == 0 and len(views) > 1:
                panel.set_title(title, fontsize=9)
            if column == 0:
                panel.set_ylabel(group.label, fontsize=9, color=group.colour)
        bar = figure.colorbar(image, ax=axes[:, own], location="bottom", shrink=0.9, aspect=30, pad=0.02)
        bar.ax.tick_params(labelsize=8)
    return _channels_shown(len({channel for _, channel, _ in shown}), len({channel for _, channel, _ in views}))

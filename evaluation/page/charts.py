"""The charts of the page, as JSON for Plotly, which the page embeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from evaluation.page.run_record import Points, RunRecord
from utils.errors import printable

# Legible on a light and on a dark background.
COLOURS = ("#3b7dd8", "#e0702c", "#2f9e58", "#c94f9b", "#8a63d2", "#b08a1e", "#2a9db0", "#d64545", "#7a8794", "#8a5a3c")
QUARTERS = ("lowest quarter of sigma", "second quarter", "third quarter", "highest quarter of sigma")
MOST_POINTS = 2000  # of a curve; of more, the means of consecutive ones
LEGEND = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0}
ROW_HEIGHT, CHART_HEIGHT = 34, 360  # pixels


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Attributes:
        name: name in the legend.
        points: steps and values.
        markers: whether each point is marked.
        colour: index of its colour; None for that of its position.
    """

    name: str
    points: Points
    markers: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        title: heading.
        caption: sentence on what it shows.
        height: height in pixels.
        figure: data and layout for Plotly, JSON without characters that mean something in HTML.
        summary: the numbers in words.
    """

    title: str
    caption: str
    height: int
    figure: str
    summary: str


@dataclass(frozen=True)
class Measurement:
    """A result of an evaluation.

    Attributes:
        run: name of the run; empty on the page of one run.
        number: number of the evaluation among those of the run.
        metric: name of the metric.
        value: its value.
        error: its error; None if not known.
        colour: index of its colour.
    """

    run: str
    number: int
    metric: str
    value: float
    error: float | None
    colour: int = 0


def run_charts(run: RunRecord) -> list[Chart]:
    """Return the charts of the metrics of a run by step, without those for which it has none."""
    quarters = [Curve(name, run.column("loss_by_sigma", k)) for k, name in enumerate(QUARTERS)]
    charts = [
        _curves(
            "Loss",
            "Mean training loss since the entry before, and loss of the averaged weights on held-out data.",
            [Curve("training", run.column("loss")), Curve("held out", run.column("eval_loss"), markers=True)],
        ),
        _curves("Loss by noise level", "Training loss in each quarter of the noise levels.", quarters),
        _curves("Norm of the gradient", "Before it is clipped.", [Curve("norm", run.column("grad_norm"))]),
        _curves("Learning rate", "", [Curve("learning rate", run.column("lr"))], log=False),
        _curves("Speed", "Images per second.", [Curve("images/s", run.column("images_per_sec"))], log=False),
    ]
    return [chart for chart in charts if chart is not None]


def comparison_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Return the charts of the losses of several runs by step, a curve for each run."""

    def curves(key: str, place: int | None = None, markers: bool = False) -> list[Curve]:
        return [Curve(run.name, run.column(key, place), markers, i) for i, run in enumerate(runs)]

    charts = [
        _curves("Held-out loss", "Of the averaged weights.", curves("eval_loss", markers=True)),
        _curves("Training loss", "Mean since the entry before.", curves("loss")),
        *(_curves(f"Training loss, {name}", "", curves("loss_by_sigma", k)) for k, name in enumerate(QUARTERS)),
    ]
    return [chart for chart in charts if chart is not None]


def results_chart(measurements: Sequence[Measurement]) -> Chart | None:
    """Return a chart with axes for each metric and a row for each evaluation; None without a finite result."""
    from plotly.subplots import make_subplots  # a slow import

    measurements = [one for one in measurements if math.isfinite(one.value)]
    metrics = list(dict.fromkeys(one.metric for one in measurements))
    if not metrics:
        return None
    rows = [[one for one in measurements if one.metric == metric] for metric in metrics]
    sizes = [len(row) + 1 for row in rows]
    height = ROW_HEIGHT * sum(sizes) + 48 * len(rows) + 30
    spacing = 0 if len(rows) == 1 else min(62 / height, 1 / len(rows))
    titles = [_text(metric) for metric in metrics]
    figure = make_subplots(len(rows), 1, row_heights=sizes, vertical_spacing=spacing, subplot_titles=titles)
    for number, row in enumerate(rows, 1):
        for place, one in enumerate(row):
            error = one.error if one.error is not None and math.isfinite(one.error) else 0.0
            figure.add_scatter(
                x=[one.value], y=[place], error_x={"type": "data", "array": [error], "thickness": 2}, mode="markers",
                marker={"size": 9, "color": _colour(one.colour)}, showlegend=False, row=number, col=1,
                hovertemplate=f"{one.value:.5g}{_plus_minus(one.error)}<extra></extra>",
            )  # fmt: skip
        figure.update_yaxes(
            tickvals=list(range(len(row))), ticktext=[str(one.number) for one in row], range=[len(row) - 0.4, -0.6],
            fixedrange=True, row=number, col=1,
        )  # fmt: skip
        figure.update_xaxes(tickangle=0, nticks=4, row=number, col=1)
    figure.update_layout(margin={"l": 30, "r": 16, "t": 40, "b": 30})
    caption = "A row is an evaluation, by its number below, and a bar its error, of which the table says what it is of."
    named_rows = [(f"{one.metric}, {one.run} evaluation {one.number}", one) for one in measurements]
    summary = "; ".join(f"{name}: {one.value:.4g}{_plus_minus(one.error)}" for name, one in named_rows)
    return _chart("Results", caption, height, figure, summary)


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.2g}"


def _curves(title: str, caption: str, curves: Sequence[Curve], log: bool = True) -> Chart | None:
    """Return a chart of curves by step; None if none of them has a point that can be shown."""
    from plotly.graph_objects import Figure  # a slow import

    if log:
        curves = [replace(curve, points=_where(curve.points, lambda value: value > 0)) for curve in curves]
    shown = [(i, curve) for i, curve in enumerate(curves) if curve.points[0]]
    if not shown:
        return None
    figure = Figure()
    for i, curve in shown:
        (steps, values), _ = thin(curve.points)
        mode = "lines+markers" if curve.markers or len(steps) == 1 else "lines"
        figure.add_scatter(
            x=steps, y=values, name=_text(curve.name), mode=mode,
            line={"color": _colour(i if curve.colour is None else curve.colour), "width": 1.8}, marker={"size": 6},
            hovertemplate="%{y:.4g}",
        )  # fmt: skip
    most = max(thin(curve.points)[1] for _, curve in shown)
    if most > 1:
        caption += f" A point is the mean of up to {most} entries."
    figure.update_layout(
        hovermode="x unified", showlegend=len(shown) > 1, margin={"l": 10, "r": 12, "t": 10, "b": 10},
        legend=LEGEND,
    )  # fmt: skip
    figure.update_xaxes(title="step", automargin=True, rangemode="tozero")
    figure.update_yaxes(automargin=True, tickformat="~g", rangemode="normal" if log else "tozero")
    if log:
        low, high = _log_range([curve for _, curve in shown])
        # Of several decades a few digits only, which would overlap otherwise.
        figure.update_yaxes(type="log", range=[low, high], nticks=3 if high - low > 1 else 5)
    last = [f"{curve.name} {curve.points[1][-1]:.4g}" for _, curve in shown]
    return _chart(title, caption.strip(), CHART_HEIGHT, figure, f"at the end: {', '.join(last)}")


def _chart(title: str, caption: str, height: int, figure: Any, summary: str) -> Chart:
    figure.update_layout(template="none", font={"family": "inherit", "size": 13})
    return Chart(title, caption, height, in_script(figure.to_json()), f"{title}; {summary}")


def in_script(text: str) -> str:
    """Escape JSON, so that nothing in it ends the element ``script`` that holds it."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(text: str) -> str:
    """Return a text as it is shown by Plotly, which knows some tags and entities of HTML."""
    return escape(printable(text), quote=False)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _where(points: Points, condition: Any) -> Points:
    kept = [(step, value) for step, value in zip(*points, strict=True) if condition(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def thin(points: Points) -> tuple[Points, int]:
    """Return at most ``MOST_POINTS`` points, the means of consecutive ones, and of how many at most."""
    steps, values = points
    size = math.ceil(len(steps) / MOST_POINTS)
    if size <= 1:
        return points, 1
    parts = range(0, len(steps), size)
    return ([steps[min(i + size, len(steps)) - 1] for i in parts], [_mean(values[i : i + size]) for i in parts]), size


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _log_range(curves: Iterable[Curve]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis.

    The loss of a fresh network at the highest noise levels, where it is exact, may be tiny; it is cut off.
    """
    values = sorted(value for curve in curves for value in curve.points[1])
    median, high = values[len(values) // 2], values[-1]
    low = max(values[0], 1e-4 * median)
    room = 0.05 * (math.log10(high / low) or 1.0)
    return math.log10(low) - room, math.log10(high) + room

"""The page of one run, and the comparison of several."""

from collections.abc import Sequence
from typing import Any

from evaluation.page import sections
from evaluation.page.charts import COLOURS, comparison_charts, results_chart, run_charts
from evaluation.page.commands import PURPOSES, run_commands
from evaluation.page.outputs import Output
from evaluation.page.render import render
from evaluation.page.run_record import RunRecord

RUN_INDEX = [
    ("overview", "Overview"),
    ("data", "Data"),
    ("curves", "Curves"),
    ("samples", "Samples"),
    ("trajectories", "Trajectories"),
    ("drawings", "Generated samples"),
    ("evaluations", "Evaluations"),
    ("neighbours", "Neighbours"),
    ("few", "Few evaluations"),
    ("checkpoints", "Checkpoints"),
    ("commands", "Commands"),
]
COMPARISON_INDEX = [
    ("overview", "Overview"),
    ("differences", "Differences"),
    ("curves", "Curves"),
    ("samples", "Samples"),
    ("evaluations", "Evaluations"),
    ("neighbours", "Neighbours"),
]


def run_page(run: RunRecord, evaluations: Sequence[Output], drawings: Sequence[Output]) -> str:
    """Return the page of a run as HTML.

    Args:
        run: what its directory says.
        evaluations: its evaluations.
        drawings: its drawings.
    """
    shown, left_out = sections.drawings_of(drawings, run)
    classes, number_of_classes = sections.classes_of(run)
    contents: dict[str, Any] = {
        "state": sections.state_of(run),
        "run_facts": sections.facts_of(run),
        "config": sections.config_text(run),
        "is_image": run.is_image,
        "data_facts": sections.data_facts(run),
        "data_picture": sections.data_picture(run),
        "classes": classes,
        "number_of_classes": number_of_classes,
        "has_names": any(name for _, name, _ in classes),
        "charts": run_charts(run),
        "snapshots": sections.snapshots_of(run),
        "trained_trajectories": sections.trained_trajectories(run),
        "drawings": shown,
        "drawings_left_out": left_out,
        "evaluations": [sections.results_of(output) for output in evaluations],
        "results_chart": results_chart(sections.measurements_of(evaluations)),
        "tuned": sections.tuned_rows(run),
        "checkpoints": sections.checkpoint_rows(run),
        "commands": run_commands(run),
        "purposes": PURPOSES,
    }
    return render("run.html", run.name, RUN_INDEX, contents)


def comparison_page(runs: Sequence[RunRecord], evaluations: Sequence[Sequence[Output]]) -> str:
    """Return the comparison of runs as HTML.

    Args:
        runs: what their directories say.
        evaluations: evaluations of each run.
    """
    measurements = [
        one
        for i, (run, outputs) in enumerate(zip(runs, evaluations, strict=True))
        for one in sections.measurements_of(outputs, run.name, i)
    ]
    contents: dict[str, Any] = {
        "runs": [
            {
                "name": run.name,
                "colour": COLOURS[i % len(COLOURS)],
                "state": sections.state_of(run),
                "facts": sections.facts_of(run),
                "is_image": run.is_image,
                "snapshots": sections.snapshots_of(run),
                "evaluations": [sections.results_of(output) for output in outputs],
                "commands": run_commands(run),
            }
            for i, (run, outputs) in enumerate(zip(runs, evaluations, strict=True))
        ],
        "differences": sections.differences(runs),
        "charts": comparison_charts(runs),
        "results_chart": results_chart(measurements),
    }
    return render("comparison.html", f"Comparison of {len(runs)} runs", COMPARISON_INDEX, contents)

"""The contents of the page: what each of its sections shows."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from datasets.shape import data_shape
from evaluation.page.charts import Measurement
from evaluation.page.outputs import Output
from evaluation.page.pictures import Picture, read_picture
from evaluation.page.run_record import RunRecord
from utils.options import flat

MOST_SNAPSHOTS = 30  # of a slider, evenly chosen
MOST_DRAWINGS = 12  # the newest
MOST_GRIDS = 4  # of a drawing
MOST_CLASSES = 100  # rows of the table of classes
MOST_CHARACTERS = 200  # of a value in the table of differences
NEIGHBOURS = "In each row a drawn sample, the nearest training image and the nearest held-out image"
NEIGHBOUR_METRICS = {
    "memorization": "Share of copies of a training image",
    "nearer_to_training": "Share nearer to training than to held-out data",
}
LISTS = ("class_names", "class_counts")  # keys of the data that the page shows as a table

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Frame:
    """A picture of a slider, and its label."""

    label: str
    picture: Picture


@dataclass(frozen=True)
class Snapshots:
    """Samples drawn while training: some of ``number`` snapshots."""

    frames: list[Frame]
    number: int


@dataclass(frozen=True)
class Drawing:
    """What run_vis.py wrote: pictures, of which ``left_out`` are not shown, and the options that were chosen."""

    name: str
    facts: Facts
    pictures: list[Picture]
    left_out: int
    trajectory: Picture | None
    states: str


@dataclass(frozen=True)
class EvaluationResults:
    """What run_eval.py wrote: rows of its table, its protocol, and its pictures."""

    name: str
    checkpoint: str
    rows: list[dict[str, str]]
    protocol: str
    samples: Picture | None
    neighbours: Picture | None
    neighbour_facts: Facts


def facts_of(run: RunRecord) -> Facts:
    """Return what was run, as names and values."""
    option = run.options
    shape = " x ".join(map(str, data_shape(run.cfg.data)))
    training, optim = (_section(option, name) for name in ("training", "optim"))
    facts = [
        ("Data", f"{option['data'].get('dataset')}, each {shape}"),
        ("Network", f"{option['model']['name']}, parametrization {option['model'].get('parametrization')}"),
        ("Process", f"{option['sde'].get('name')}, sigma {option['sde']['sigma_min']} to {option['sde']['sigma_max']}"),
        ("Noise levels", f"{training.get('noise_levels')}"),
        ("Batch size", f"{training.get('batch_size')}"),
        ("Optimizer", f"{optim.get('optimizer')}, rate {optim.get('lr')}, {optim.get('schedule')}"),
        ("Precision", f"{option.get('precision')}"),
        ("Seed", f"{option.get('seed')}"),
    ]
    if run.source is not None:
        facts.append(("Started from", f"{run.source.get('path')}"))
    return facts


def state_of(run: RunRecord) -> Facts:
    """Return how far a run is, and its losses."""
    held_out, seconds = run.column("eval_loss"), run.seconds(run.step)
    facts = [("Step", f"{run.step:,}" + (f" of {run.total:,}" if run.total is not None else ""))]
    if seconds is not None and run.step:
        facts.append(("Training", duration(seconds)))
    if run.entries:
        facts.append(("Training loss", f"{run.entries[-1]['loss']:.4g}"))
    if held_out[0]:
        best = min(held_out[1])
        facts.append(("Held-out loss", f"{held_out[1][-1]:.4g}"))
        facts.append(("Lowest held-out loss", f"{best:.4g} at step {held_out[0][held_out[1].index(best)]:,}"))
    return facts


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that it has."""
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    whole, parts = round(seconds), []
    for name, size in units:
        if whole >= size:
            parts.append(f"{whole // size} {name}")
            whole %= size
    return "about " + (" ".join(parts[:2]) or "0 s")


def data_facts(run: RunRecord) -> Facts:
    """Return what is known of the data of a run."""
    facts = [
        ("Data set", str(run.options["data"].get("dataset"))),
        ("Shape", " x ".join(map(str, data_shape(run.cfg.data)))),
    ]
    if run.data is not None:
        names = {"training": "Training samples", "held_out": "Held-out samples"}
        facts += [(name, f"{run.data[split]['images']:,}") for split, name in names.items()]
        facts.append(("Classes", str(run.data["num_classes"]) if run.data["num_classes"] > 1 else "none"))
    return facts


def classes_of(run: RunRecord) -> tuple[list[tuple[int, str, str]], int]:
    """Return number, name and count of training samples of the first classes, and how many there are in all."""
    names = run.option("data", "class_names", list) or (run.data or {}).get("class_names") or []
    counts = run.option("data", "class_counts", list) or []
    number = max(len(names), len(counts))
    shown = min(number, MOST_CLASSES)
    empty = [""] * shown
    texts = [*map(str, names), *empty][:shown]
    numbers = [*(f"{count:,}" if isinstance(count, int) else "" for count in counts), *empty][:shown]
    return list(zip(range(shown), texts, numbers, strict=True)), number


def data_picture(run: RunRecord) -> Picture | None:
    """Return the grid of training data of a run; None if it has none."""
    path = run.path / "data.png"
    return read_picture(path, "Training data, by class if they have one") if path.exists() else None


def snapshots_of(run: RunRecord) -> Snapshots:
    """Return the samples that a run drew while training, at most ``MOST_SNAPSHOTS``."""
    steps = list(run.snapshots)
    count = min(len(steps), MOST_SNAPSHOTS)
    chosen = [steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)]
    frames = []
    for step in chosen:
        seconds = run.seconds(step)
        label = f"step {step:,}" + (f", {duration(seconds)} of training" if seconds is not None else "")
        picture = read_picture(run.snapshots[step] / "sample_0.png", f"Samples drawn at step {step:,}")
        frames.append(Frame(label, picture))
    return Snapshots(frames, len(steps))


def drawing_of(output: Output, is_image: bool) -> Drawing:
    """Return what run_vis.py wrote to a directory."""
    folder, options = output.folder, output.options
    matches = (re.fullmatch(r"samples_(0|[1-9]\d{0,8})\.npz", path.name) for path in folder.iterdir())
    numbers = sorted(int(match[1]) for match in matches if match)
    rounds = [folder / f"samples_{number}.png" for number in numbers]  # drawn completely
    grids = [path for path in rounds if path.exists()]
    pictures = [read_picture(path, f"Generated samples, {path.name}") for path in grids[:MOST_GRIDS]]
    given = folder / "given_0.png"
    if given.exists() and rounds:
        pictures.insert(0, read_picture(given, "The given images, grey where they are not known"))
    facts = [("Weights", output.checkpoint)]
    chosen = {key: options.get(key) for key in ("label", "cond", "w", "given")}
    sampling = _section(options, "sampling")
    chosen |= {f"sampling.{key}": sampling.get(key) for key in ("method", "steps")}
    facts += [(key, _short(value)) for key, value in chosen.items() if value is not None]
    strip, states, trajectory = folder / "trajectory.png", folder / "trajectory.npy", None
    if strip.exists() and rounds:
        trajectory = read_picture(strip, "From noise on the left to samples on the right")
    left_out = len(grids) - len(grids[:MOST_GRIDS])
    numbers_only = str(states) if states.exists() and not is_image else ""
    return Drawing(str(folder), facts, pictures, left_out, trajectory, numbers_only)


def trained_trajectories(run: RunRecord) -> list[Frame]:
    """Return the trajectories that a run drew while training, with sampling.trajectory, the last of them."""
    paths = [(step, folder / "trajectory.png") for step, folder in run.snapshots.items()]
    return [
        Frame(f"step {step:,}", read_picture(path, f"From noise to samples at step {step:,}"))
        for step, path in paths[-1:]
        if path.exists()
    ]


def results_of(output: Output) -> EvaluationResults:
    """Return what run_eval.py wrote to a directory."""
    rows = []
    for name, metric in output.results["metrics"].items():
        count = metric.get("note") or f"{metric.get('drawn', metric.get('images'))} images"
        about = [metric.get("error_is") or count, metric.get("unit")]
        error = metric.get("error")
        rows.append(
            {
                "metric": name,
                "value": f"{metric['value']:.5g}",
                "error": "" if error is None else f"{error:.2g}",
                "of": "; ".join(str(part) for part in about if part),
            }
        )
    folder = output.folder
    samples, neighbours = folder / "images/samples_0.png", folder / "memorization.png"
    drawn = samples.exists() and samples.with_suffix(".npz").exists()
    measured = [row for row in rows if row["metric"] in NEIGHBOUR_METRICS]
    return EvaluationResults(
        str(folder),
        output.checkpoint,
        rows,
        json.dumps(output.results, indent=2),
        read_picture(samples, "The first samples that were measured") if drawn else None,
        read_picture(neighbours, NEIGHBOURS) if measured and neighbours.exists() else None,
        [(NEIGHBOUR_METRICS[row["metric"]], f"{row['value']} ± {row['error']}") for row in measured],
    )


def measurements_of(outputs: Sequence[Output], run: str = "", colour: int = 0) -> list[Measurement]:
    """Return the results of the evaluations of a run for a chart; see ``Measurement``."""
    return [
        Measurement(run, number, metric, float(result["value"]), result.get("error"), colour)
        for number, output in enumerate(outputs, 1)
        for metric, result in output.results["metrics"].items()
    ]


def tuned_rows(run: RunRecord) -> list[dict[str, str]]:
    """Return the samplers that were tuned for a run, by their number of evaluations."""
    return [
        {
            "evaluations": str(number),
            "sampler": f"{found.method}, eta {found.eta:g}" if found.eta else found.method,
            "distance": "{:.4f} ± {:.4f}".format(*found.energy_distance),
            "default": "{:.4f} ± {:.4f}".format(*found.default),
            "checkpoint": found.checkpoint,
        }
        for number, found in sorted(run.tuned.items())
    ]


def checkpoint_rows(run: RunRecord) -> list[dict[str, str]]:
    """Return the checkpoints that a run has, with step and held-out loss as far as recorded."""
    return [
        {
            "number": str(number),
            "step": f"{run.records[number].step:,}" if number in run.records else "",
            "loss": f"{run.records[number].eval_loss:.4g}" if number in run.records else "",
            "best": "best" if number == run.best else "",
        }
        for number in run.present
    ]


def config_text(run: RunRecord) -> str:
    """Return the configuration as YAML, without the long lists that the page shows as a table."""
    options = {**run.options, "data": {key: value for key, value in run.options["data"].items() if key not in LISTS}}
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=100)


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the keys whose values differ between runs, with the value of each run."""
    flats: list[Mapping[str, Any]] = [flat(run.options) for run in runs]
    keys = dict.fromkeys(key for one in flats for key in one)
    missing = object()
    rows = []
    for key in keys:
        values = [one.get(key, missing) for one in flats]
        if any(value != values[0] for value in values[1:]):
            rows.append((key, ["not there" if value is missing else _short(value) for value in values]))
    return rows


def _section(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of options, which nothing has checked; an empty one if there is none."""
    part = options.get(name)
    return part if isinstance(part, dict) else {}


def _short(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError):  # such as a date
        text = str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."


def drawings_of(outputs: Sequence[Output], run: RunRecord) -> tuple[list[Drawing], int]:
    """Return the newest drawings of a run, the newest first, and the number of those left out."""
    shown = outputs[-MOST_DRAWINGS:][::-1]
    return [drawing_of(output, run.is_image) for output in shown], len(outputs) - len(shown)

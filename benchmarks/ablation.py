"""What does each part of a recipe give? python -m benchmarks.ablation digits|patches DIR [options]

Trains the recipe, the published objective with the same network and steps, and the recipe with one part changed, for
several seeds, two runs at a time on one thread each; then evaluates them and prints tables: mean over the seeds and its
standard error, also of the differences of the bound by seed. Runs and evaluations in DIR are not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PUBLISHED = ("model.parametrization=output", "training.noise_levels=uniform", "training.stratified=false")
VARIANTS = {
    "published": PUBLISHED,
    "recipe": (),
    "published, dequantized": (*PUBLISHED, "data.dequantize=true"),
    "recipe, dequantized": ("data.dequantize=true",),
    "published parametrization": PUBLISHED[:1],
    "without width": ("model.parametrization=kernel",),
    "uniform noise levels": ("training.noise_levels=uniform",),
    "capped noise levels": ("training.noise_levels=capped",),
    "importance sampling": ("training.noise_levels=loss_adaptive",),
    "not stratified": ("training.stratified=false",),
    "log-variance weighting": ("training.weighting=log_variance",),
    "published, twice the learning rate": (*PUBLISHED, "optim.lr=2e-3"),
    "recipe, twice the learning rate": ("optim.lr=2e-3",),
}


@dataclass(frozen=True)
class Sizes:
    """Steps of training, and numbers of images."""

    steps: int
    held_out: int  # for the held-out loss while training
    density: int  # for the density of the flow
    drawn: int  # by samplers with few steps
    drawn_by_ode: int


DATA = {"digits": Sizes(700, 359, 100, 1000, 500), "patches": Sizes(400, 500, 40, 500, 50)}
EVAL_FREQ = 20  # steps between two points of the curve of the held-out loss
QUALITY = "metrics=[energy_distance,fid]"


def evaluations(data: str) -> dict[str, tuple[str, ...]]:
    """Return the options of run_eval.py for each evaluation, by its name."""
    sizes = DATA[data]
    few = (QUALITY, f"metrics.num_images={sizes.drawn}", "sampling.method=multistep")
    return {
        "elbo": ("metrics=[elbo]", "metrics.elbo.num_times=20"),
        "bpd": ("metrics=[bpd]", f"eval.images={sizes.density}"),
        "bpd, corrected": ("metrics=[bpd]", f"eval.images={sizes.density}", "metrics.bpd.face_width=auto"),
        **{f"multistep {n}": (*few, f"sampling.steps={n}") for n in (5, 10, 20)},
        "ode": (QUALITY, f"metrics.num_images={sizes.drawn_by_ode}", "sampling.method=ode"),
    }


def run(script: str, *options: str) -> None:
    """Run an entry script on one thread, and show its output if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, script, *options], env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{script} {' '.join(options)}\n{result.stdout}{result.stderr}")


def train(data: str, variant: str, seed: int, folder: Path) -> Path:
    """Train a run if ``folder`` does not have it, and return its directory."""
    directory = folder / variant.replace(" ", "_") / str(seed)
    if not (directory / "done").exists():
        run(
            "run_train.py",
            f"experiment={data}",
            *VARIANTS[variant],
            f"training.n_iters={DATA[data].steps}",
            f"seed={seed}",
            f"eval.batch_size={DATA[data].held_out}",
            f"training.eval_freq={EVAL_FREQ}",
            "training.snapshot_sampling=false",
            f"hydra.run.dir={directory}",
        )
        (directory / "done").touch()
    return directory


def measure(directory: Path, name: str, options: tuple[str, ...]) -> None:
    """Evaluate a run if that has not been done."""
    target = directory / "eval" / name.replace(" ", "_")
    if not (target / "results.json").exists():
        run("run_eval.py", f"load_dir={directory}", f"hydra.run.dir={target}", "eval.batch_size=100", *options)


def curve(directory: Path) -> dict[int, float]:
    """Return the held-out loss by step."""
    entries = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}


def results(directory: Path, data: str) -> dict[str, float]:
    """Return the numbers of a run that have been measured, by name."""
    losses = curve(directory)
    numbers = {f"loss {step}": losses[step] for step in (200, 400, max(losses))}
    for name in evaluations(data):
        path = directory / "eval" / name.replace(" ", "_") / "results.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        for metric, result in found["metrics"].items():
            numbers[metric if metric == name else f"{name} {metric}"] = result["value"]
            if metric == "bpd":
                numbers[f"{name} evaluations"] = result["evaluations"]["mean"]
                numbers[f"{name} evaluations, largest"] = result["evaluations"]["largest"]
        if name == "ode":
            numbers["ode evaluations, largest"] = int(found["drawn_images"]["evaluations"].split()[0])
    return numbers


def mean_and_error(values: list[float]) -> str:
    """Format a mean and its standard error."""
    mean = np.mean(values)
    digits = 0 if abs(mean) >= 100 else 4 if abs(mean) < 1 else 3
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} +- {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"


def main() -> None:
    """Train, evaluate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("folder", type=Path, help="directory of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... of each variant")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--metrics", nargs="*", help="evaluations, default: all")
    arguments = parser.parse_args()
    chosen = evaluations(arguments.data)
    chosen = {name: chosen[name] for name in (chosen if arguments.metrics is None else arguments.metrics)}

    def work(job: tuple[int, str]) -> None:
        seed, variant = job
        directory = train(arguments.data, variant, seed, arguments.folder)
        for name, options in chosen.items():
            measure(directory, name, options)
        print(f"{variant}, seed {seed}: {results(directory, arguments.data)}", file=sys.stderr, flush=True)

    jobs = [(seed, variant) for seed in range(arguments.seeds) for variant in arguments.variants]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, jobs))

    seeds = range(arguments.seeds)
    of = {
        variant: [train(arguments.data, variant, seed, arguments.folder) for seed in seeds]
        for variant in arguments.variants
    }
    table = {variant: [results(directory, arguments.data) for directory in of[variant]] for variant in of}
    names = [
        name for name in next(iter(table.values()))[0] if all(name in row for rows in table.values() for row in rows)
    ]
    print("| variant | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for variant, rows in table.items():
        print(f"| {variant} | " + " | ".join(mean_and_error([row[name] for row in rows]) for name in names) + " |")

    for base in ("published", "recipe"):
        if base not in of or "elbo" not in chosen:
            continue
        for variant in [variant for variant in of if variant != base]:
            pairs = zip(table[variant], table[base], strict=True)
            difference = mean_and_error([row["elbo"] - other["elbo"] for row, other in pairs])
            print(f"bound of {variant} less that of {base}, by seed: {difference}")

    if "published" in of:
        goals = [list(curve(directory).values())[-1] for directory in of["published"]]
        for variant in of:
            curves = [curve(directory) for directory in of[variant]]
            steps = [
                next((s for s, v in c.items() if v <= goal), np.inf) for c, goal in zip(curves, goals, strict=True)
            ]
            print(f"steps of {variant} to the final held-out loss of published: {mean_and_error(steps)}")


if __name__ == "__main__":
    main()

"""What does augmentation give with few images? python -m benchmarks.augmentation DIR [--seeds N] [--count N]

Trains the recipe experiment=digits on the first digits only: as they are, with augmentation that the network is told
(``data.augment``), and mirrored at random without a word (``data.random_flip``), with the same options. Prints for each
the loss on the held-out digits, the lowest and the last, and of drawn digits the share that the classifier of
evaluation.digits reads as asked, their energy distance to the held-out digits, and the share nearer to a training digit
than held-out ones are. Means over the seeds and their standard errors. Runs that are in DIR already are not repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.ablation import mean_and_error, run
from benchmarks.finetune import DATA, HELD_OUT, write_digits
from evaluation.digits import DigitClassifier

VARIANTS = {
    "as they are": (),
    "data.augment=0.12": ("data.augment=0.12",),
    "data.random_flip=true": ("data.random_flip=true",),
}
STEPS = 700  # those of the recipe
DRAWN = 1000


def train(directory: Path, *options: str) -> None:
    """Train the recipe of the digits and draw from it, if that has not been done."""
    if not (directory / "done").exists():
        run(
            "run_train.py",
            "experiment=digits",
            f"training.n_iters={STEPS}",
            "training.eval_freq=50",
            f"eval.batch_size={HELD_OUT}",
            "training.snapshot_sampling=false",
            "logger=none",
            f"hydra.run.dir={directory}",
            *options,
        )
        drawing = (f"load_dir={directory}", "label=[0,1,2,3,4,5,6,7,8,9]", "sampling.method=multistep")
        run("run_vis.py", *drawing, f"eval.batch_size={DRAWN}", f"hydra.run.dir={directory}/vis")
        (directory / "done").touch()


def measure(directory: Path, classifier: DigitClassifier, places: tuple[str, ...]) -> dict[str, float]:
    """Return the numbers of a run, by name; ``places`` are the options that say where its data are."""
    entries = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    drawn = directory / "vis/images/samples_0.npz"
    if not (directory / "eval/results.json").exists():
        metrics = ("metrics=[energy_distance,memorization]", f"metrics.samples_path={drawn}")
        run("run_eval.py", f"load_dir={directory}", *metrics, *places, f"hydra.run.dir={directory}/eval")
    found = json.loads((directory / "eval/results.json").read_text())["metrics"]
    with np.load(drawn) as stored:
        read = classifier.classify(stored["samples"])
    return {
        "held-out loss, lowest": min(losses),
        "last": losses[-1],
        "read as asked": float((read == np.arange(DRAWN) % 10).mean()),
        "energy distance": found["energy_distance"]["value"],
        "nearer to training": found["nearer_to_training"]["value"],
    }


def main() -> None:
    """Train, draw, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="directory of the data and runs")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, ... of each run")
    parser.add_argument("--count", type=int, default=200, help="digits to train on")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute() / str(arguments.count)
    if not (folder / "data").exists():
        write_digits(folder / "data", arguments.count, quarters=0)
    places = (f"data.root={folder}/data", f"dataroot={folder}/cache")
    classifier = DigitClassifier()
    heading = ""
    for name, options in VARIANTS.items():
        rows = []
        for seed in range(arguments.seeds):
            directory = folder / f"{name}_{seed}".replace(" ", "_").replace("=", "_")
            train(directory, f"seed={seed}", *DATA, *places, *options)
            rows.append(measure(directory, classifier, places))
        if not heading:
            heading = f"| {arguments.count} digits | " + " | ".join(rows[0]) + " |"
            print(f"{heading}\n|{'---|' * (len(rows[0]) + 1)}")
        print(
            f"| {name} | " + " | ".join(mean_and_error([row[key] for row in rows]) for key in rows[0]) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()

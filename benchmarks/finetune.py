"""What does fine-tuning give? python -m benchmarks.finetune DIR [--seeds N]

Trains the recipe experiment=digits with half the channels and a quarter of the batch, and then digits that are turned
by a quarter, and as few as 200 of them: from the weights of the first run (``init_from``) and from scratch, with the
same options. Prints the held-out loss by step, mean over the seeds and its standard error. Runs that are in DIR already
are not repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.ablation import mean_and_error, run
from datasets.images import digits

SMALL = ("model.model_channels=16", "training.batch_size=32")
SOURCE_STEPS = 700  # those of the recipe
STEPS = (20, 50, 100, 200)  # at which the loss on all held-out digits is printed
EVERY = 10  # steps between two of these losses
HELD_OUT = 359
DATA = ("data=folder", "data.image_size=8", "data.num_channels=1", "data.classes=true", "data.num_classes=10")
FEW = 200  # digits to train on in the second task


def write_digits(folder: Path, count: int | None, quarters: int = 1) -> None:
    """Write turned digits as images, in train/CLASS and test/CLASS: the first ``count`` to train on."""
    for split, train in (("train", True), ("test", False)):
        images = digits(train)
        pixels = torch.rot90(images.data, quarters, (2, 3))[: count if train else None, 0].numpy()
        for i, (image, label) in enumerate(zip(pixels, images.labels.tolist(), strict=False)):
            path = folder / split / str(label) / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(path)


def train(directory: Path, steps: int, *options: str) -> dict[int, float]:
    """Train the recipe of the digits if that has not been done, and return the held-out loss by step."""
    if not (directory / "done").exists():
        run(
            "run_train.py",
            "experiment=digits",
            *SMALL,
            f"training.n_iters={steps}",
            f"training.eval_freq={EVERY}",
            f"eval.batch_size={HELD_OUT}",
            "training.snapshot_sampling=false",
            "logger=none",
            f"hydra.run.dir={directory}",
            *options,
        )
        (directory / "done").touch()
    entries = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="directory of the data and runs")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0, 1, ... of each run")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    source = folder / "source"
    train(source, SOURCE_STEPS)
    print("| digits turned by a quarter | start | " + " | ".join(f"step {step}" for step in STEPS) + " |")
    print("|---|---|" + "---|" * len(STEPS))
    for name, count in (("all 1,438", None), (f"{FEW}", FEW)):
        data = folder / f"data_{count}"
        if not data.exists():
            write_digits(data, count)
        options = (*DATA, f"data.root={data}", f"dataroot={folder}/cache")
        for start, chosen in (("from scratch", ()), ("fine-tuned", (f"init_from={source}",))):
            directories = [folder / f"{start}_{count}_{seed}".replace(" ", "_") for seed in range(arguments.seeds)]
            runs = [
                train(directory, STEPS[-1], f"seed={seed}", *options, *chosen)
                for seed, directory in enumerate(directories)
            ]
            losses = [mean_and_error([losses[step] for losses in runs]) for step in STEPS]
            print(f"| {name} | {start} | " + " | ".join(losses) + " |", flush=True)


if __name__ == "__main__":
    main()

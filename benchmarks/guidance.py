"""What does guidance do at high weights? python -m benchmarks.guidance RUN [--w ...] [--methods ...] [--variants ...]

Draws images of each class in turn from a run, for each method, weight and variant, and prints a table: the share that a
classifier reads as the class that was asked for, the energy distance to real images of that class, and the share of
values within one of 256 levels of a face of the cube, all as means over the classes. The noise of sigma_min, which
would hide the last, is removed (sampling.denoiser=mean). Images that are in --folder already are not drawn again.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.networks import composed
from benchmarks.timing import device_name
from datasets import ImageDataset, load_configured
from evaluation.digits import DigitClassifier
from evaluation.generate import ImageSampler
from evaluation.output_dir import write_arrays
from models.io.run_files import find_checkpoint
from utils.energy_distance import energy_distance
from utils.errors import UserError, replacing

HULL = "guidance.clamp=hull"
PROJECTED = ("guidance.eta=0", "guidance.norm_threshold=2.5", "guidance.momentum=-0.5")
VARIANTS = {
    "plain": (),
    "hull": (HULL,),
    "interval": ("guidance.interval=[0.05,1]",),
    "interval, hull": ("guidance.interval=[0.05,1]", HULL),
    "projected": PROJECTED,
    "projected, hull": (*PROJECTED, HULL),
    "clip": ("sampling.boundary=clip",),
    "dynamic": ("sampling.boundary=dynamic",),
}
DEFAULT_VARIANTS = {True: ("plain", "hull"), False: ("plain", "clip", "dynamic")}  # of a bounded process, of another
FITTED = 4000  # real images that a classifier other than that of the digits is fitted to
BATCH = 250
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHOWN = 20  # images in a row of the picture


@dataclass(frozen=True)
class Setting:
    """A way to draw images: a method such as ``multistep 10``, a weight, and a name of ``VARIANTS``."""

    method: str
    w: float
    variant: str

    def __str__(self) -> str:
        return f"{self.method}, w = {self.w:g}, {self.variant}"

    @property
    def options(self) -> list[str]:
        """Return the options of run_vis.py."""
        name, *steps = self.method.split()
        chosen = [f"sampling.method={name}", *(f"sampling.steps={number}" for number in steps)]
        return [*chosen, "sampling.denoiser=mean", f"w={self.w}", *VARIANTS[self.variant]]


@dataclass(frozen=True)
class Real:
    """Real images uint8 (N, H, W, C) with their classes (N,)."""

    pixels: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, images: ImageDataset) -> "Real":
        """Convert a data set to pixels as run_vis.py writes them."""
        values = images.normalize(images.data)
        return cls((values * 255).round().to(torch.uint8).movedim(1, -1).numpy(), images.labels.numpy())


def classifier(dataset: str, real: Real) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a support-vector classifier of pixels, that of evaluation.digits for digits, to real training images."""
    if dataset == "digits":
        return DigitClassifier().classify
    from sklearn.svm import SVC  # imported here because it is slow

    def values(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1) / 255.0

    machine = SVC(C=10.0).fit(values(real.pixels[:FITTED]), real.labels[:FITTED])
    return lambda pixels: machine.predict(values(pixels))


def draw(run: Path, setting: Setting, number: int, num_classes: int, folder: Path) -> tuple[np.ndarray, int]:
    """Draw the images of a setting if ``folder`` does not have them; image i is of class i % num_classes.

    Returns:
        Pixels, uint8 (number, H, W, C), and the evaluations of the score for each.

    Raises:
        UserError: if the samples are not finite.
    """
    path = folder / f"{setting.method}_w{setting.w:g}_{setting.variant}_{number}.npz".replace(" ", "_").replace(",", "")
    if not path.exists():
        options = [f"load_dir={run}", f"label={list(range(num_classes))}".replace(" ", ""), *setting.options]
        sampler = ImageSampler(composed(*options, name="vis"), DEVICE)
        batches = [sampler(range(start, min(start + BATCH, number))) for start in range(0, number, BATCH)]
        pixels, nfe = np.concatenate([batch.pixels for batch in batches]), max(batch.nfe for batch in batches)
        write_arrays(path, {"pixels": pixels, "nfe": np.array(nfe)})
    with np.load(path) as stored:
        return stored["pixels"], int(stored["nfe"])


def at_faces(pixels: np.ndarray) -> float:
    """Return the share of values within one of 256 levels of a face."""
    return float(((pixels <= 1) | (pixels >= 254)).mean())


def distance_by_class(pixels: np.ndarray, labels: np.ndarray, real: Real) -> tuple[float, float]:
    """Return the mean over the classes of the energy distance to real images, and its standard error.

    The error is due to the number of ``pixels``: all settings are compared with the same real images.
    """

    def rows(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) / 255.0

    found = [
        energy_distance(rows(pixels[labels == label]), rows(real.pixels[real.labels == label]))
        for label in np.unique(labels)
    ]
    return float(np.mean([value for value, _ in found])), math.hypot(*(error for _, error in found)) / len(found)


def row_of(name: str, nfe: str, pixels: np.ndarray, labels: np.ndarray, predicted: np.ndarray, real: Real) -> str:
    """Format a row of the table."""
    share = float((predicted == labels).mean())
    distance, error = distance_by_class(pixels, labels, real)
    faces = np.mean([at_faces(pixels[labels == label]) for label in np.unique(labels)])
    return (
        f"| {name} | {nfe} | {share:.4f} +- {math.sqrt(share * (1 - share) / len(labels)):.4f} "
        f"| {distance:.4f} +- {error:.4f} | {faces:.4f} |"
    )


def save_picture(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Write a PNG with a labelled row of images uint8 (N, H, W, C) for each entry."""
    from matplotlib.figure import Figure  # a slow import, only where used

    figure = Figure((10, 0.62 * len(rows)), layout="constrained")
    for axes, (name, pixels) in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows.items(), strict=True):
        framed = np.pad(pixels, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=128)
        axes.imshow(np.concatenate(list(framed), 1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def main() -> None:
    """Draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run of images with classes")
    parser.add_argument("--w", type=float, nargs="+", default=[0, 1, 2, 4, 8, 16], help="guidance weights")
    parser.add_argument(
        "--methods", nargs="+", default=["pc", "ode", "multistep 10"], help="method, or method and steps"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="default: plain and hull; of sde=ve plain, clip and dynamic"
    )
    parser.add_argument("--number", type=int, default=1000, help="images of each setting")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="real images of the distance")
    parser.add_argument("--dataroot", default="datasets", help="folder of data sets that are downloaded")
    parser.add_argument("--folder", type=Path, help="folder of the images; default: RUN/guidance")
    parser.add_argument("--picture", type=Path, help="PNG: rows of the highest weight, and the lowest")
    arguments = parser.parse_args()

    run, number = arguments.run, arguments.number
    sampler = ImageSampler(composed(f"load_dir={run}", name="vis"), DEVICE)
    num_classes, data = sampler.net.num_classes, sampler.run.data
    if not (num_classes and sampler.is_image):
        parser.error(f"{run} is not a run of images with classes")
    variants = arguments.variants or DEFAULT_VARIANTS[sampler.sde.bounded]
    train, test = (Real.of(load_configured(data, split, arguments.dataroot, None)) for split in (True, False))
    read = classifier(str(data.dataset), train)
    real, other = (test, train) if arguments.split == "test" else (train, test)
    labels = np.arange(number) % num_classes
    folder = (arguments.folder or run / "guidance") / find_checkpoint(run).stem
    folder.mkdir(parents=True, exist_ok=True)

    accuracy = float((read(test.pixels) == test.labels).mean())
    print(f"{device_name()}; {run}, {number} images a setting; the classifier reads {accuracy:.4f} of held-out images")
    print(f"energy distance to {len(real.labels)} images of the split {arguments.split}, {num_classes} classes\n")
    print("| images | evaluations | read as asked | energy distance in a class | share of values at a face |")
    print("|---|---|---|---|---|")
    print(row_of("real, the other split", "", other.pixels, other.labels, read(other.pixels), real))
    pictures: dict[str, np.ndarray] = {}
    for setting in (Setting(m, w, v) for m in arguments.methods for w in arguments.w for v in variants):
        if setting.variant.startswith("projected") and setting.method.startswith("ode"):
            continue  # which refuses momentum
        print(setting, file=sys.stderr, flush=True)
        try:
            pixels, nfe = draw(run, setting, number, num_classes, folder)
        except UserError as error:
            print(f"| {setting} | | {error} | | |", flush=True)
            continue
        print(row_of(str(setting), str(nfe), pixels, labels, read(pixels), real), flush=True)
        if setting.w == max(arguments.w) or (setting.w == min(arguments.w) and setting.variant == variants[0]):
            pictures[str(setting)] = pixels[:SHOWN]
    if arguments.picture is not None:
        save_picture(arguments.picture, pictures)


if __name__ == "__main__":
    main()

"""Are drawn digits what was asked for, and distributed as real ones? python -m evaluation.digits SAMPLES.npz [...]

A support-vector classifier is fitted to the real training digits of ``data=digits`` and reads the drawn ones; its
accuracy on the real held-out digits is the ceiling of what it can confirm. The energy distance (Szekely & Rizzo 2013)
between the drawn and the held-out digits is zero for the same distribution. Digits drawn without a class, whose files
have no labels, count for the energy distance alone.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

from datasets.images import digits
from evaluation.read_samples import read_labels, read_samples
from utils.errors import ArgumentParser, InputError, printable


class DigitReader:
    """A classifier of 8x8 digits, fitted to the training split.

    Attributes:
        held_out_accuracy: on the held-out split.
    """

    def __init__(self) -> None:
        from sklearn.svm import SVC  # heavy import, only where used

        real, held_out = digits(train=True), digits(train=False)
        self._levels = real.levels
        self._svc = SVC(gamma=0.001, C=10.0).fit(real.pixels.flatten(1).numpy(), real.labels.numpy())
        self.held_out_accuracy = self._svc.score(held_out.pixels.flatten(1).numpy(), held_out.labels.numpy())

    def read(self, samples: np.ndarray) -> np.ndarray:
        """Classes of images as run_vis.py writes them: uint8 (N, 8, 8, 1), 255 is white; int64 (N,)."""
        if samples.shape[1:] != (8, 8, 1):
            raise InputError(f"the digits are (8, 8, 1), not {samples.shape[1:]}")
        return self._svc.predict(samples.reshape(len(samples), -1) * ((self._levels - 1) / 255.0))


def energy_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| without bias, and the standard error that the choice of ``x`` causes.

    Args:
        x, y: samples as vectors, (N, D) and (M, D); |.| is the Euclidean norm.
    """
    across = cdist(x, y).mean(1)
    within, other = (cdist(z, z).sum(1) / (len(z) - 1) for z in (x, y))
    distance = 2 * across.mean() - within.mean() - other.mean()
    return float(distance), float(2 * (across - within).std() / np.sqrt(len(x)))


def main() -> None:
    parser = ArgumentParser(description="Share of drawn digits that are read as the class asked for.")
    parser.add_argument("samples", nargs="+", type=Path, help="images/samples_*.npz of run_vis.py")
    paths = parser.parse_args().samples
    try:
        for path in paths:
            if not path.exists():
                raise InputError(f"{path} does not exist")
        drawn = [read_samples(path, 8, 1) for path in paths]
        labels = [read_labels(path, len(samples)) for path, samples in zip(paths, drawn, strict=True)]
    except InputError as error:
        sys.exit(printable(str(error)))
    samples, asked = np.concatenate(drawn), np.concatenate(labels)
    if len(samples) < 2:
        sys.exit("need two digits or more")
    reader = DigitReader()
    with_class = asked >= 0
    if with_class.any():
        asked = asked[with_class]
        right: np.ndarray = np.equal(asked, reader.read(samples[with_class]))
        for label in np.unique(asked):
            print(f"{label}: {right[asked == label].mean():.3f} of {np.sum(asked == label)}")
        share = right.mean()
        spread = np.sqrt(share * (1 - share) / len(right))
        print(f"all: {share:.4f} +- {spread:.4f} of {len(right)} read as asked")
    if not with_class.all():
        print(f"{np.sum(~with_class)} of {len(samples)} have no label: nobody asked for a class")
    print(f"real held-out digits: {reader.held_out_accuracy:.4f}")
    real, held_out = (images.pixels.flatten(1).numpy() / (images.levels - 1) for images in map(digits, (True, False)))
    for name, sample in (("drawn", samples.reshape(len(samples), -1) / 255.0), ("real training", real)):
        distance, spread = energy_distance(sample, held_out)
        print(f"energy distance of the {name} digits from the held-out ones: {distance:.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main()

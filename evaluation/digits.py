"""Are drawn digits what was asked for, and distributed as real ones? python -m evaluation.digits SAMPLES.npz [...]

A support-vector classifier is fitted to the real training digits of ``data=digits`` and reads the drawn ones; its
accuracy on the real held-out digits is the ceiling of what it can confirm. The energy distance (Szekely & Rizzo 2013)
between the drawn and the held-out digits is zero for the same distribution.
"""

import argparse
import zipfile

import numpy as np
from scipy.spatial.distance import cdist

from datasets.images import digits
from errors import InputError


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
    parser = argparse.ArgumentParser(description="Share of drawn digits that are read as the class asked for.")
    parser.add_argument("samples", nargs="+", help="images/samples_*.npz of run_vis.py")
    paths = parser.parse_args().samples
    reader = DigitReader()
    labels, answers, drawn = [], [], []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                labels.append(arrays["labels"])
                answers.append(reader.read(arrays["samples"]))
                drawn.append(arrays["samples"].reshape(len(labels[-1]), -1) / 255.0)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            parser.error(f"{path}: {error}")
    asked = np.concatenate(labels)
    right: np.ndarray = np.equal(asked, np.concatenate(answers))
    for label in np.unique(asked):
        print(f"{label}: {right[asked == label].mean():.3f} of {np.sum(asked == label)}")
    share = right.mean()
    spread = np.sqrt(share * (1 - share) / len(right))
    print(f"all: {share:.4f} +- {spread:.4f} of {len(right)} read as asked")
    print(f"real held-out digits: {reader.held_out_accuracy:.4f}")
    real, held_out = (images.pixels.flatten(1).numpy() / (images.levels - 1) for images in map(digits, (True, False)))
    for name, sample in (("drawn", np.concatenate(drawn)), ("real training", real)):
        distance, spread = energy_distance(sample, held_out)
        print(f"energy distance of the {name} digits from the held-out ones: {distance:.4f} +- {spread:.4f}")


if __name__ == "__main__":
    main()

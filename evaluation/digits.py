"""Are drawn digits what was asked for? python -m evaluation.digits SAMPLES.npz [...]

A support-vector classifier is fitted to the real training digits of ``data=digits`` and reads the drawn ones; its
accuracy on the real held-out digits is the ceiling of what it can confirm.
"""

import argparse

import numpy as np

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


def main() -> None:
    parser = argparse.ArgumentParser(description="Share of drawn digits that are read as the class asked for.")
    parser.add_argument("samples", nargs="+", help="images/samples_*.npz of run_vis.py")
    paths = parser.parse_args().samples
    reader = DigitReader()
    asked, read = [], []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                asked.append(arrays["labels"])
                read.append(reader.read(arrays["samples"]))
        except (OSError, KeyError, ValueError) as error:
            parser.error(f"{path}: {error}")
    asked, read = np.concatenate(asked), np.concatenate(read)
    right = asked == read
    for label in np.unique(asked):
        print(f"{label}: {right[asked == label].mean():.3f} of {np.sum(asked == label)}")
    share = right.mean()
    error = np.sqrt(share * (1 - share) / len(right))
    print(f"all: {share:.4f} +- {error:.4f} of {len(right)} read as asked")
    print(f"real held-out digits: {reader.held_out_accuracy:.4f}")


if __name__ == "__main__":
    main()

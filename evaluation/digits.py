"""Accuracy and energy distance of sampled digits: python -m evaluation.digits SAMPLES.npz [...]

A support-vector classifier is fitted to the training split of ``data=digits``. It classifies the samples, and the share
assigned to the requested class is printed with the accuracy of the classifier on the held-out split. The energy
distance (Szekely & Rizzo 2013) between samples and held-out digits is zero for equal distributions. Samples without
labels contribute to the energy distance only.
"""

import sys
from pathlib import Path

import numpy as np

from datasets.images import DIGIT_LEVELS, digits
from evaluation.read_samples import read_labels, read_samples
from utils.energy_distance import energy_distance
from utils.errors import ArgumentParser, InputError, printable


class DigitClassifier:
    """Classifies 8x8 digits, after fitting to the training split.

    Attributes:
        held_out_accuracy: accuracy on the held-out split.
    """

    def __init__(self) -> None:
        from sklearn.svm import SVC  # imported here because it is slow

        real, held_out = digits(train=True), digits(train=False)
        self._svc = SVC(gamma=0.001, C=10.0).fit(real.data.flatten(1).numpy(), real.labels.numpy())
        self.held_out_accuracy = self._svc.score(held_out.data.flatten(1).numpy(), held_out.labels.numpy())

    def classify(self, samples: np.ndarray) -> np.ndarray:
        """Classify images as run_vis.py writes them.

        Args:
            samples: uint8 (N, 8, 8, 1), white is 255.

        Returns:
            Classes, int64 (N,).

        Raises:
            InputError: for images of another shape.
        """
        if samples.shape[1:] != (8, 8, 1):
            raise InputError(f"the digits are (8, 8, 1), not {samples.shape[1:]}")
        return self._svc.predict(samples.reshape(len(samples), -1) * ((DIGIT_LEVELS - 1) / 255.0))


def main() -> None:
    """Print the accuracy by class and the energy distance of the samples."""
    parser = ArgumentParser(description="Accuracy and energy distance of sampled digits.")
    parser.add_argument("samples", nargs="+", type=Path, help="images/samples_*.npz written by run_vis.py")
    paths = parser.parse_args().samples
    try:
        for path in paths:
            if not path.exists():
                raise InputError(f"{path} does not exist")
        sampled = [read_samples(path, 8, 1) for path in paths]
        labels = [read_labels(path, len(samples)) for path, samples in zip(paths, sampled, strict=True)]
    except InputError as error:
        sys.exit(printable(str(error)))
    samples, requested = np.concatenate(sampled), np.concatenate(labels)
    if len(samples) < 2:
        sys.exit("need two digits or more")
    classifier = DigitClassifier()
    with_class = requested >= 0
    if with_class.any():
        requested = requested[with_class]
        correct: np.ndarray = np.equal(requested, classifier.classify(samples[with_class]))
        for label in np.unique(requested):
            print(f"{label}: {correct[requested == label].mean():.3f} of {np.sum(requested == label)}")
        share = correct.mean()
        standard_error = np.sqrt(share * (1 - share) / len(correct))
        print(f"all: {share:.4f} +- {standard_error:.4f} of {len(correct)} classified as requested")
    if not with_class.all():
        print(f"{np.sum(~with_class)} of {len(samples)} have no label")
    print(f"accuracy on real held-out digits: {classifier.held_out_accuracy:.4f}")
    real, held_out = (images.data.flatten(1).numpy() / (DIGIT_LEVELS - 1) for images in map(digits, (True, False)))
    for name, sample in (("sampled", samples.reshape(len(samples), -1) / 255.0), ("real training", real)):
        distance, standard_error = energy_distance(sample, held_out)
        print(f"energy distance between {name} and held-out digits: {distance:.4f} +- {standard_error:.4f}")


if __name__ == "__main__":
    main()

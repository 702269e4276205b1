"""Which classes to draw."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from errors import InputError
from sampling.guidance import NULL_LABEL
from seeds import Stream, derived_seed

Label = int | Sequence[int] | None


def check_labels(label: Label, w: float, num_classes: int) -> list[int]:
    """The classes that ``label`` names, a class or a list of them; none for None, which means random classes.

    Args:
        label: 0 .. num_classes - 1, -1 for the null label, a list of these, or None.
        w: guidance weight, which needs classes.
        num_classes: of the network; 0 if it has none.

    Raises:
        InputError: if the network has no such class, or none at all.
    """
    if not num_classes:
        if label is not None:
            raise InputError(f"label={label}: this network has no classes, leave label out")
        if w:
            raise InputError(f"w={w}: this network has no classes to guide by, leave w out")
    if label is None:
        return []
    labels = list(label) if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    for value in labels:
        if type(value) is not int or not NULL_LABEL <= value < num_classes:
            raise InputError(f"label={value}: the classes of this network are 0 to {num_classes - 1}, -1 for none")
    if not labels:
        raise InputError("label=[]: name at least one class")
    return labels


def labels_of(images: range, classes: Sequence[int], num_classes: int, seed: int) -> Tensor | None:
    """Labels of the images with these numbers, each a function of its number.

    Args:
        images: their numbers.
        classes: taken in turn; if empty, each image's class is random, from (seed, its number).
        num_classes: of the network; 0 if it has none.
        seed: of the random classes.

    Returns:
        int64 (len(images),), or None for a network without classes.
    """
    if not num_classes:
        return None
    if classes:
        return torch.tensor([classes[i % len(classes)] for i in images])
    draws = [np.random.default_rng(derived_seed(seed, Stream.LABEL, i)).integers(num_classes) for i in images]
    return torch.tensor(draws)

"""Which classes to draw."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from errors import InputError
from sampling.guidance import NULL_LABEL


def choose_labels(
    label: int | Sequence[int] | None, w: float, n: int, num_classes: int, generator: Generator
) -> tuple[Tensor | None, int | None]:
    """Labels of ``n`` images, and the columns of a grid in which each column is one class, if there is one.

    Args:
        label: a class, a list of them taken in turn, -1 for the null label, or None for random classes.
        w: guidance weight, which needs classes.
        num_classes: of the network; 0 if it has none.
        generator: of the random classes; labels are on its device.

    Returns:
        int64 (n,), or None for a network without classes; the number of columns or None.

    Raises:
        InputError: if the network has no such class, or none at all.
    """
    if not num_classes:
        if label is not None:
            raise InputError(f"label={label}: this network has no classes, leave label out")
        if w:
            raise InputError(f"w={w}: this network has no classes to guide by, leave w out")
        return None, None
    if label is None:
        return torch.randint(num_classes, (n,), generator=generator, device=generator.device), None
    labels = list(label) if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    for value in labels:
        if type(value) is not int or not NULL_LABEL <= value < num_classes:
            raise InputError(f"label={value}: the classes of this network are 0 to {num_classes - 1}, -1 for none")
    if not labels:
        raise InputError("label=[]: name at least one class")
    tensor = torch.tensor(labels, device=generator.device).repeat(-(-n // len(labels)))[:n]
    return tensor, len(labels) if len(labels) > 1 else None

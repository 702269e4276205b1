"""The classes or conditions of the samples: parsing of the options ``label`` and ``cond``, and labels by number."""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import numpy as np
import torch
from torch import Tensor

from models import NULL_LABEL
from utils.errors import InputError
from utils.options import did_you_mean
from utils.seeds import Stream, derived_seed

Label = int | str | Sequence[int | str] | None
Conditions = Sequence[float] | Sequence[Sequence[float]] | None

log = logging.getLogger(__name__)


def resolve_labels(
    label: Label, w: float, num_classes: int, names: Sequence[str] = (), cond_size: int = 0
) -> list[int]:
    """Return the numbers of the classes that ``label`` names; an empty list for None, which means random classes.

    Args:
        label: 0 .. num_classes - 1, -1 for the null label, the name of a class, a list of these, or None.
        w: guidance weight, which needs classes or a condition.
        num_classes: number of classes of the network; 0 if it has none.
        names: names of the classes, if they are known.
        cond_size: number of values of the condition of the network; 0 if it has none.

    Raises:
        InputError: if the network has no such class, or none at all.
    """
    if not num_classes:
        if label is not None:
            raise InputError(f"label={label}: this network has no classes, leave label out")
        if w and not cond_size:
            raise InputError(f"w={w}: this network has no classes to guide by, leave w out, or give guidance.dir")
    names = names if len(names) == num_classes else ()
    if label is None:
        if quoted := _quoted(None, names):
            log.warning("label=null: random classes are drawn; %s is the one called so", quoted)
        return []
    given = list(label) if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    if not given:
        raise InputError("label=[]: name at least one class")
    return [_number(value, num_classes, names) for value in given]


def resolve_conditions(cond: Conditions, w: float, cond_size: int) -> list[list[float]]:
    """Return the conditions that ``cond`` gives, each of ``cond_size`` values; the null condition for None.

    Args:
        cond: values of one condition, a list of conditions, or None.
        w: guidance weight.
        cond_size: number of values of the condition of the network; 0 if it has none.

    Raises:
        InputError: if the network has no condition or one of another size, or there is no condition to guide by.
    """
    if not cond_size:
        if cond is not None:
            raise InputError(f"cond={cond}: this network has no condition, leave cond out")
        return []
    if cond is None:
        if w:
            raise InputError(f"w={w}: there is no condition to guide by, give cond or guidance.dir")
        return [[math.nan] * cond_size]
    conditions = [list(row) for row in cond if isinstance(row, Sequence)] or [cast(list[float], list(cond))]
    if any(len(condition) != cond_size for condition in conditions):
        raise InputError(f"cond={cond}: the condition of this network has {cond_size} values")
    return conditions


def _number(value: object, num_classes: int, names: Sequence[str]) -> int:
    """Return the number of the class that ``value`` names, see ``resolve_labels``."""
    if isinstance(value, str) and value in names:
        return list(names).index(value)
    if type(value) is not int or not NULL_LABEL <= value < num_classes:
        quoted = _quoted(value, names)
        known = f", called {', '.join(names[:20])}{', ...' * (len(names) > 20)}" if names else ""
        raise InputError(
            f"label={value}: the classes of this network are 0 to {num_classes - 1}, -1 for none{known}"
            + (f"; {quoted} is the one called so" if quoted else did_you_mean(value, names))
        )
    if value >= 0 and names and names[value] != str(value) and str(value) in names:
        numbers = (value, value, names[value], value)
        log.warning("label=%d: class number %d is called %s; label='\"%d\"' is the one called so", *numbers)
    return value


def _quoted(value: object, names: Sequence[str]) -> str:
    """Return how to name the classes, if there are some, whose names the command line reads as this ``value``."""
    text = None if value is None else str(value)  # a class called None is reached without quotes
    called = [name for name in names if name == text or repr(_unquoted(name)) == repr(value)]
    return " or ".join(f"label='\"{name}\"'" for name in called)


def _unquoted(name: str) -> object:
    """Return what a ``name`` is to the command line unquoted, but for integers: true, null and 1e3 are no text."""
    with suppress(KeyError):
        return {"true": True, "false": False, "null": None}[name.lower()]
    with suppress(ValueError):
        return float(name)
    return name


def check_counts(counts: Sequence[int] | None, num_classes: int) -> list[int] | None:
    """Return the numbers of training samples of the classes, as recorded by a run; None if there is no record.

    Raises:
        InputError: if there are others than ``num_classes`` of them, or all are 0.
    """
    if counts is None:
        return None
    if len(counts) != num_classes or not any(counts):
        raise InputError(f"data.class_counts has {len(counts)} values, {sum(counts)} in all, for {num_classes} classes")
    return list(counts)


def labels_of(
    images: range, classes: Sequence[int], num_classes: int, seed: int, counts: Sequence[int] | None = None
) -> Tensor | None:
    """Return the labels of the samples with these numbers, each a function of its number.

    Args:
        images: numbers of the samples.
        classes: classes taken in turn; if empty, the class of a sample is random, from (seed, its number).
        num_classes: number of classes of the network; 0 if it has none.
        seed: seed of the random classes.
        counts: frequencies of the random classes, such as the numbers of training samples; None for uniform ones.

    Returns:
        int64 (len(images),), or None for a network without classes.
    """
    if not num_classes:
        return None
    if classes:
        return torch.tensor([classes[i % len(classes)] for i in images])
    total = num_classes if counts is None else sum(counts)
    draws = [np.random.default_rng(derived_seed(seed, Stream.LABEL, i)).integers(total) for i in images]
    return torch.tensor(draws if counts is None else np.searchsorted(np.cumsum(counts), draws, side="right"))


def conditions_of(images: range, conditions: Sequence[Sequence[float]]) -> Tensor:
    """Return the conditions of the samples with these numbers, taken in turn, float32 (len(images), K)."""
    return torch.tensor([conditions[i % len(conditions)] for i in images])

"""RUN/data.json, a record of the data set of a run, which is compared when the run is resumed."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ImageDataset
from utils.errors import InputError, replacing

log = logging.getLogger(__name__)

SPLITS = {"training": "to train on", "held_out": "held out"}
NAMED = 5  # number of class names that a message lists
LARGEST = 2**24  # largest size of a record in bytes


def describe_data(images: ImageDataset, held_out: ImageDataset) -> dict[str, Any]:
    """Return the record of a data set: its classes, and the number and the fingerprint of the images of each split.

    Args:
        images: training split.
        held_out: held-out split.
    """
    splits = zip(SPLITS, (images, held_out), strict=True)
    return {
        "num_classes": images.num_classes,
        "class_names": list(images.class_names),
        **{name: {"images": len(part), "fingerprint": part.fingerprint} for name, part in splits},
    }


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Write ``record`` to data.json in the directory of the run."""
    with replacing(run_dir / "data.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def check_same_data(run_dir: Path, record: dict[str, Any], allow_change: bool) -> None:
    """Compare the present data set with the record of the run in ``run_dir``, if there is one.

    Args:
        run_dir: directory of the run that is resumed.
        record: record of the present data set, from ``describe_data``.
        allow_change: whether differences are only a warning.

    Raises:
        InputError: naming the differences, unless they are allowed; or if the record of the run cannot be read.
    """
    path = run_dir / "data.json"
    if not path.exists():  # as in runs of versions that wrote none
        log.warning("%s is missing: whether the data set is that of the run so far cannot be told", path)
        return
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ValueError("it is not a file, or too long")
        differences = list(_differences(json.loads(path.read_text()), record))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if allow_change:
            return
        raise InputError(
            f"{path} cannot be read as what the run was trained on ({error}): "
            "training.allow_data_change=true records the data set anew"
        ) from error
    if not differences:
        return
    changed = f"the data set is not the one that the run in {run_dir} was trained on: {'; '.join(differences)}"
    if not allow_change:
        raise InputError(f"{changed}. Bring that one back, or use this one by training.allow_data_change=true")
    log.warning("%s; continuing with this one", changed)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield a description of each difference between two records."""
    yield from _class_differences(old["class_names"], new["class_names"])
    if old["num_classes"] != new["num_classes"]:
        yield f"it had {old['num_classes']} classes, now {new['num_classes']}"
    for split, what in SPLITS.items():
        was, now = old[split], new[split]
        if was["images"] != now["images"]:
            yield f"it had {was['images']:,} images {what}, now {now['images']:,}"
        elif was["fingerprint"] and now["fingerprint"] and was["fingerprint"] != now["fingerprint"]:
            yield f"the {now['images']:,} images {what}, or their classes, are others"


def _class_differences(old: list[str], new: list[str]) -> Iterator[str]:
    if not old or not new or old == new:
        return
    if len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        yield _listed([f"class {label} was {was}, now {now}" for label, (was, now) in pairs if was != now])
        return
    if gone := [name for name in old if name not in new]:
        yield f"no longer a class: {_listed(gone)}"
    if come := [name for name in new if name not in old]:
        yield f"a class now: {_listed(come)}"


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")

"""The directory of a run: its lock, its configuration, and the check that a configuration may resume it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from models.io.config import load_config
from models.io.published import is_published
from utils.errors import InputError, replacing
from utils.locks import exclusive

# Keys of the data that may change: the same files may have moved; data_record.py compares what they are.
PLACES = ("data.root", "data.held_out", "data.labels", "data.cond", "data.class_names", "data.class_counts")
# A change of these would make it another run.
IDENTITY = ("model", "data", "sde", "seed", "optim.optimizer", "init_from")
# Files that a run writes after its configuration: without one they belong to something else and are not overwritten.
WRITTEN = ("checkpoints", "checkpoints-meta", "checkpoints.json", "samples", "ema", "metrics.jsonl", "data.json")


def resumed_config(composed: DictConfig, run_dir: Path, overrides: list[str]) -> DictConfig:
    """Load the configuration saved in ``run_dir`` and apply the command line's overrides to it.

    Args:
        composed: configuration that Hydra composed, with the values of the overrides.
        run_dir: directory of the run to resume.
        overrides: ``key=value`` strings of the command line.

    Raises:
        InputError: if there is no such run, or an override cannot apply to a resumed run.
    """
    cfg = load_config(run_dir, composed.max_image_size)
    if "seed" not in cfg:
        raise InputError(f"resume={run_dir} was not trained by this code: it can be drawn from but not resumed")
    newer = {key: value for key, value in composed.items() if key not in ("model", "data", "sde")}
    # An option that did not exist when the run began has its default.
    cfg = cast(DictConfig, OmegaConf.merge(OmegaConf.create(newer), cfg))
    for override in overrides:
        if override.startswith("~"):
            raise InputError(f"{override}: a resumed run cannot lose a key")
        key = override.split("=", 1)[0].lstrip("+")
        if key == "experiment":
            raise InputError("experiment cannot change in a resumed run: it keeps its own configuration")
        OmegaConf.update(cfg, key, OmegaConf.select(composed, key), merge=False)
    return cfg


@contextmanager
def open_run(run_dir: Path, cfg: DictConfig) -> Iterator[None]:
    """Lock the directory for this process, if it is new or has the run that ``cfg`` describes.

    Raises:
        InputError: naming the key, if the directory has another run; or if another process has locked it.
    """
    with exclusive(run_dir, "another process trains there"):
        check_same_run(run_dir, cfg)
        yield


def keep_recorded_classes(run_dir: Path, cfg: DictConfig) -> None:
    """Set what ``cfg`` lacks of ``data.class_names`` and ``data.class_counts`` to that of the run in ``run_dir``."""
    if not (run_dir / ".hydra" / "config.yaml").exists():
        return
    old = load_config(run_dir, cfg.max_image_size)
    with open_dict(cfg):
        if "class_counts" in old.data:
            cfg.data.class_counts = old.data.class_counts
        if cfg.data.get("class_names", ()) is not None:
            return
        if "class_names" in old.data:
            cfg.data.class_names = old.data.class_names
        else:  # a run of an earlier version, whose classes are in the plain order of their names
            del cfg.data["class_names"]


def check_same_run(run_dir: Path, cfg: DictConfig) -> None:
    """Raise InputError, naming the key, if ``run_dir`` holds another run than ``cfg`` describes."""
    if not (run_dir / ".hydra" / "config.yaml").exists():
        for name in WRITTEN:
            path = run_dir / name
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise InputError(f"{path} is there, but no {run_dir}/.hydra/config.yaml: choose another hydra.run.dir")
        return
    old = load_config(run_dir, cfg.max_image_size)
    if is_published(yaml.safe_load((run_dir / ".hydra" / "config.yaml").read_text())):
        raise InputError(
            f"{run_dir} holds what the published code wrote or reads, such as an export: it can be drawn from but not "
            "resumed"
        )
    for group in IDENTITY:
        before, now = OmegaConf.select(old, group), OmegaConf.select(cfg, group)
        for key, (was, wanted) in _differences(before, now, group).items():
            if key in PLACES:
                continue
            if key == "data.background" and was is None and wanted == "white":
                continue  # the run is from before this option
            raise InputError(f"{key}={wanted}, but the run in {run_dir} has {was}: start another, or drop the override")


def write_config(run_dir: Path, cfg: DictConfig) -> None:
    """Record ``cfg`` as the configuration of the run.

    ``training.allow_data_change`` is recorded as false: it only applies to the present start.
    """
    path = run_dir / ".hydra" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = OmegaConf.merge(cfg, {"training": {"allow_data_change": False}})
    with replacing(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(kept))


def _differences(old: object, new: object, key: str) -> dict[str, tuple[object, object]]:
    if isinstance(old, DictConfig) and isinstance(new, DictConfig):
        found: dict[str, tuple[object, object]] = {}
        for name in sorted({*old, *new}):
            found |= _differences(old.get(name), new.get(name), f"{key}.{name}")
        return found
    return {} if old == new else {key: (old, new)}

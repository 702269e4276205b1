"""Weights to start a training from (``init_from``): those of a trained model that fit another network."""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from datasets.options import MAX_IMAGE_SIZE
from datasets.shape import data_shape
from models.create import GIVEN, NETWORKS, create_model
from models.io.pretrained import load_pretrained
from models.io.run_files import find_checkpoint, named_checkpoint
from models.parametrization import PARAMETRIZATIONS
from utils.errors import InputError
from utils.options import Option, options_of, plain

log = logging.getLogger(__name__)

# Options of networks that do not change the function that trained weights compute.
FREE = ("dropout", "init_scale", "fourier_scale")


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start a training from.

    Attributes:
        taken: tensors of the trained model that fit, by their names in ``ScoreModel.network``.
        fresh: why each other tensor of the network does not come from the trained model, by name.
        unused: names of the tensors of the trained model that the network does not have.
        class_names: names of the classes of the trained model, if the network takes their embedding.
    """

    taken: dict[str, Tensor]
    fresh: dict[str, str]
    unused: list[str]
    class_names: tuple[str, ...] = ()


def find_source(path: str | Path) -> Path:
    """Return the file with the weights of ``path``: a run, a published model directory, a checkpoint or an export.

    Raises:
        InputError: if there is no such file.
    """
    run_dir, ckpt = named_checkpoint(path)
    return run_dir if run_dir.suffix == ".safetensors" and run_dir.is_file() else find_checkpoint(run_dir, ckpt)


def load_initial(
    path: Path,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    sde: Mapping[str, Any],
    max_image_size: int = MAX_IMAGE_SIZE,
) -> InitialWeights:
    """Load the averaged weights in a file, and take those that fit the network that a configuration describes.

    The two networks may differ in their data: classes, a condition, augmentation, channels or columns, and, if the
    layers are the same, the size of images. Their other options must agree, and so must the parametrization; weights
    trained for other noise levels are taken with a warning, unless the network has the range of the noise levels in its
    embedding.

    Args:
        path: checkpoint or exported file, from ``find_source``.
        model: section ``model`` of the new configuration; see ``create_model``.
        data: its section ``data``.
        sde: its section ``sde``.
        max_image_size: see ``load_pretrained``.

    Raises:
        InputError: naming the file, if it cannot be read or does not fit its own configuration (see
            ``load_pretrained``); or naming the keys, if the networks differ in more than their data.
    """
    net, cfg = load_pretrained(path, max_image_size=max_image_size)
    _check_options(path, cfg, model, sde)
    _check_noise(path, cfg, sde)
    with torch.device("meta"):
        shapes = create_model(model, data, sde).network.state_dict()
        # The new network told what the trained one is told differs from that by its shape only.
        told = {key: cfg.data.get(key) or 0 for key in ("classes", "num_classes", "cond_size", "augment")}
        shaped_only = create_model(model, {**data, **told}, sde).network.state_dict()
    stored = net.network.state_dict()
    foreign = sorted(shaped_only.keys() ^ stored.keys())
    if foreign:
        raise InputError(
            f"{path} is of data of shape {_shown(data_shape(cfg.data))}, for which the network has other layers than "
            f"for {_shown(data_shape(data))}: {foreign[0]} is in one of them only"
        )
    taken = {name: tensor for name, tensor in stored.items() if name in shapes and shapes[name].shape == tensor.shape}
    fresh = {
        name: f"{_shown(stored[name].shape)} there, {_shown(wanted.shape)} here" if name in stored else "not there"
        for name, wanted in shapes.items()
        if name not in taken
    }
    same_classes = cfg.data.classes and data["classes"] and cfg.data.num_classes == data["num_classes"]
    names = tuple(cfg.data.get("class_names") or ()) if same_classes else ()
    return InitialWeights(taken, fresh, [name for name in stored if name not in shapes], names)


def _check_options(path: Path, cfg: DictConfig, model: Mapping[str, Any], sde: Mapping[str, Any]) -> None:
    """Raise InputError, naming all keys, if networks or parametrizations have different options."""
    trained = plain(cfg.model)
    kinds = [section.get("parametrization", "output") for section in (trained, model)]
    differing = {
        f"model.{key}": (theirs, ours)
        for key, theirs, ours in (("name", trained["name"], model["name"]), ("parametrization", *kinds))
        if theirs != ours
    }
    options: dict[str, Option] = {}
    if trained["name"] == model["name"]:
        options |= options_of(NETWORKS[model["name"]], leave_out=(*GIVEN, *FREE))
    if kinds[0] == kinds[1]:
        options |= options_of(PARAMETRIZATIONS[kinds[0]], leave_out=("process",))
    for key, option in options.items():
        theirs, ours = (_plain(section.get(key, option.default)) for section in (trained, model))
        if theirs != ours:
            differing[f"model.{key}"] = (theirs, ours)
    takes = inspect.signature(NETWORKS[model["name"]]).parameters
    for key in ("sigma_min", "sigma_max"):
        if key in takes and "model.name" not in differing and cfg.sde[key] != sde[key]:
            differing[f"sde.{key}"] = (cfg.sde[key], sde[key])
    if differing:
        there = " ".join(f"{key}={_shown(theirs)}" for key, (theirs, _) in differing.items())
        here = ", ".join(_shown(ours) for _, ours in differing.values())
        raise InputError(f"{path} was trained with {there}, not {here}: its weights fit with these options only")


def _check_noise(path: Path, cfg: DictConfig, sde: Mapping[str, Any]) -> None:
    """Warn of another process, and of noise levels that the weights were not trained for."""
    if cfg.sde.name != sde["name"]:
        log.warning("%s was trained with sde=%s, not sde=%s", path, cfg.sde.name, sde["name"])
    if sde["sigma_min"] < cfg.sde.sigma_min or sde["sigma_max"] > cfg.sde.sigma_max:
        log.warning(
            "%s was trained for noise levels %g to %g; sde.sigma_min=%g to sde.sigma_max=%g has others",
            *(path, cfg.sde.sigma_min, cfg.sde.sigma_max, sde["sigma_min"], sde["sigma_max"]),
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value)

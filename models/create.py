"""From a model configuration to a network."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from models.adm import ADM
from models.ddpmpp import DDPMpp
from models.layers import ScoreNetwork
from models.vdm import VDM
from utils.checks import OneOf, did_you_mean
from utils.errors import InputError

NETWORKS: dict[str, type[ScoreNetwork]] = {"ddpmpp": DDPMpp, "vdm": VDM, "adm": ADM}


def create_model(model: Mapping[str, Any], data: Mapping[str, Any], sde: Mapping[str, Any]) -> ScoreNetwork:
    """Build the network ``model.name`` for the images that ``data`` describes and the noise levels of ``sde``.

    Its weights have the memory format channels_last, which convolutions pass on and are fastest in.

    Args:
        model: ``name`` and the keyword arguments of that network; ``ema_rate`` belongs to training, not to it.
        data: ``image_size``, ``num_channels``, and ``classes`` with ``num_classes`` for a network with classes.
        sde: ``sigma_min`` and ``sigma_max``.

    Raises:
        InputError: for an unknown network or argument, or a network without classes for data with them.
    """
    name = model["name"]
    OneOf(tuple(NETWORKS))("model.name", name)
    arguments = inspect.signature(NETWORKS[name]).parameters
    num_classes = data["num_classes"] if data["classes"] else 0
    if num_classes and "num_classes" not in arguments:
        raise InputError(f"data.classes=True, but model={name} has no classes: use model=adm or data.classes=False")
    given = {
        "image_size": data["image_size"],
        "num_channels": data["num_channels"],
        "num_classes": num_classes,
        "sigma_min": sde["sigma_min"],
        "sigma_max": sde["sigma_max"],
    }
    options = {key: value for key, value in model.items() if key not in ("name", "ema_rate")}
    for key in options:
        if key in given or key not in arguments:
            raise InputError(f"model.{key}: no such option{did_you_mean(key, arguments.keys() - given.keys())}")
    try:
        net = NETWORKS[name](**{key: value for key, value in given.items() if key in arguments}, **options)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        # Nothing but the user's numbers went in, so whatever torch says of them is about those.
        raise InputError(f"model={name}: {error}") from error
    return net.to(memory_format=torch.channels_last)

"""From a model configuration to a network."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from errors import InputError
from models.adm import ADM
from models.ddpmpp import DDPMpp

NETWORKS = {"ddpmpp": DDPMpp, "adm": ADM}


def create_model(model: Mapping[str, Any], data: Mapping[str, Any]) -> nn.Module:
    """Build the network ``model.name`` for the images that ``data`` describes.

    Args:
        model: ``name`` and the keyword arguments of that network; ``ema_rate`` belongs to training, not to it.
        data: ``image_size``, ``num_channels``, and ``classes`` with ``num_classes`` for a network with classes.

    Raises:
        InputError: for an unknown network or argument, or a network without classes for data with them.
    """
    options = {key: value for key, value in model.items() if key not in ("name", "ema_rate")}
    name = model["name"]
    if name not in NETWORKS:
        raise InputError(f"model.name={name}: known are {', '.join(NETWORKS)}")
    num_classes = data["num_classes"] if data["classes"] else 0
    if NETWORKS[name] is ADM:
        options["num_classes"] = num_classes
    elif num_classes:
        raise InputError(f"data.classes=True, but model={name} has no classes: use model=adm or data.classes=False")
    try:
        return NETWORKS[name](data["image_size"], data["num_channels"], **options)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        # Nothing but the user's numbers went in, so whatever torch says of them is about those.
        raise InputError(f"model={name}: {error}") from error

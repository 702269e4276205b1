"""Score models from configurations."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from datasets.shape import data_shape
from models.adm import ADM
from models.ddpmpp import DDPMpp
from models.layers import Network
from models.parametrization import PARAMETRIZATIONS
from models.score_model import ScoreModel
from models.vdm import VDM
from utils.checks import OneOf, did_you_mean
from utils.errors import InputError

NETWORKS: dict[str, type[Network]] = {"ddpmpp": DDPMpp, "vdm": VDM, "adm": ADM}
OTHER_KEYS = ("name", "parametrization", "ema_rate")  # of the section ``model``, but options of no constructor


def create_model(model: Mapping[str, Any], data: Mapping[str, Any], sde: Mapping[str, Any]) -> ScoreModel:
    """Create the score model that a configuration describes, with freshly initialised weights.

    Four-dimensional weights have the memory format channels_last, in which convolutions are fastest.

    Args:
        model: ``name`` of the network, ``parametrization`` (``output`` where it is missing), and the options of both;
            ``ema_rate`` is an option of training and ignored here.
        data: shape of the data (see ``data_shape``), and ``classes`` with ``num_classes``.
        sde: ``sigma_min`` and ``sigma_max``.

    Raises:
        InputError: for an unknown network, parametrization or option, or a network without classes for data with them.
    """
    name, kind = model["name"], model.get("parametrization", "output")
    OneOf(tuple(NETWORKS))("model.name", name)
    OneOf(tuple(PARAMETRIZATIONS))("model.parametrization", kind)
    arguments = inspect.signature(NETWORKS[name]).parameters
    num_classes = data["num_classes"] if data["classes"] else 0
    if num_classes and "num_classes" not in arguments:
        raise InputError(f"data.classes=True, but model={name} has no classes: use model=adm or data.classes=False")
    given = {
        "data_shape": data_shape(data),
        "num_classes": num_classes,
        "sigma_min": sde["sigma_min"],
        "sigma_max": sde["sigma_max"],
    }
    options = {key: value for key, value in model.items() if key not in OTHER_KEYS}
    of_network = arguments.keys() - given.keys()
    of_parametrizations = {key: inspect.signature(other).parameters.keys() for key, other in PARAMETRIZATIONS.items()}
    known = of_network.union(*of_parametrizations.values())
    for key in options:
        if key not in known:
            raise InputError(f"model.{key}: no such option{did_you_mean(key, known)}")
    try:
        network = NETWORKS[name](
            **{key: value for key, value in given.items() if key in arguments},
            **{key: value for key, value in options.items() if key in of_network},
        )
        chosen = {key: value for key, value in options.items() if key in of_parametrizations[kind]}
        parametrization = PARAMETRIZATIONS[kind](**chosen)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        # The arguments are all from the configuration, so an error of torch is about their values.
        raise InputError(f"model={name}: {error}") from error
    return ScoreModel(network.to(memory_format=torch.channels_last), parametrization)

"""The registry of networks, and the creation of score models from configurations."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from datasets.augmentation import AUGMENT_SIZE
from datasets.shape import data_shape
from models.adm import ADM
from models.ddpmpp import DDPMpp
from models.layers import Network, to_channels_last
from models.mlp import MLP
from models.options import ModelOptions
from models.parametrization import PARAMETRIZATIONS
from models.score_model import ScoreModel
from models.vdm import VDM
from sde import create_process
from utils.errors import InputError
from utils.options import Option, call_with, check_name, check_section, one_of, options_of, plain

NETWORKS: dict[str, type[Network]] = {"ddpmpp": DDPMpp, "vdm": VDM, "adm": ADM, "mlp": MLP}
# Arguments that follow from data, parametrization and process.
GIVEN = (
    "data_shape",
    "num_classes",
    "cond_size",
    "augment_size",
    "num_inputs",
    "num_outputs",
    "sigma_min",
    "sigma_max",
)


def model_options(name: str) -> dict[str, Option]:
    """Return the options of the section ``model`` for the network ``name``.

    The options are those of the network and of all parametrizations, including those that are not chosen.

    Raises:
        InputError: for an unknown network.
    """
    check_name("model.name", name, NETWORKS)
    options = options_of(ModelOptions) | {
        "parametrization": Option(one_of(PARAMETRIZATIONS).annotation, required=False)
    }
    for parametrization in PARAMETRIZATIONS.values():
        options |= options_of(parametrization, leave_out=("process",))
    return options | options_of(NETWORKS[name], leave_out=GIVEN)


def networks_with(argument: str) -> list[str]:
    """Return the names of the networks whose constructor takes ``argument``, one of ``GIVEN``."""
    return [name for name, network in NETWORKS.items() if argument in inspect.signature(network).parameters]


def create_model(model: Mapping[str, Any], data: Mapping[str, Any], sde: Mapping[str, Any]) -> ScoreModel:
    """Create the score model that a configuration describes, with freshly initialised weights.

    Four-dimensional weights have the memory format channels_last, in which convolutions are fastest.

    Args:
        model: ``name`` of the network, ``parametrization`` (``output`` if it is missing), and the options of both;
            ``ema_rate`` is an option of training and ignored here.
        data: shape of the data (see ``data_shape``), ``classes`` with ``num_classes``, and ``cond_size`` and
            ``augment`` (0 if they are missing).
        sde: ``name`` of the process, ``sigma_min`` and ``sigma_max``.

    Raises:
        InputError: for an unknown network, parametrization or option, a network without classes or a condition for
            data with them, or a parametrization that does not suit the process or the network.
    """
    model = plain(model) if isinstance(model, DictConfig) else model
    name, kind = model["name"], model.get("parametrization", "output")
    known = model_options(name)
    check_section(model, known | {"ema_rate": replace(known["ema_rate"], required=False)}, "model")
    arguments = inspect.signature(NETWORKS[name]).parameters
    num_classes = data["num_classes"] if data["classes"] else 0
    if num_classes and name not in networks_with("num_classes"):
        suitable = " or ".join(f"model={other}" for other in networks_with("num_classes"))
        raise InputError(f"data.classes=True, but model={name} has no classes: use {suitable}, or data.classes=False")
    cond_size = data.get("cond_size") or 0
    if cond_size and name not in networks_with("cond_size"):
        suitable = " or ".join(f"model={other}" for other in networks_with("cond_size"))
        raise InputError(f"data.cond_size={cond_size}, but model={name} takes no condition: use {suitable}")
    if cond_size and num_classes:
        raise InputError(f"data.cond_size={cond_size} and data.classes=True: a network has classes or a condition")
    augment = data.get("augment") or 0
    if augment and name not in networks_with("augment_size"):
        suitable = " or ".join(f"model={other}" for other in networks_with("augment_size"))
        raise InputError(f"data.augment={augment}, but model={name} cannot be told of it: use {suitable}")
    num_outputs = PARAMETRIZATIONS[kind].num_outputs
    num_inputs = PARAMETRIZATIONS[kind].num_inputs
    for what, number in (("inputs", num_inputs), ("outputs", num_outputs)):
        if number > 1 and f"num_{what}" not in arguments:
            raise InputError(
                f"model.parametrization={kind} needs {number} {what} for each value, and the constructor of "
                f"model={name} takes no num_{what}"
            )
    process = create_process(sde)
    if PARAMETRIZATIONS[kind].vanishes_at_faces and not process.bounded:
        raise InputError(
            f"model.parametrization={kind} is for a process reflected at 0 and 1, and sde={sde['name']} has no bounds: "
            "use model.parametrization=output or edm"
        )
    given = {
        "data_shape": data_shape(data),
        "num_classes": num_classes,
        "cond_size": cond_size,
        "augment_size": AUGMENT_SIZE if augment else 0,
        "num_inputs": num_inputs,
        "num_outputs": num_outputs,
        "sigma_min": sde["sigma_min"],
        "sigma_max": sde["sigma_max"],
    }
    of_network = options_of(NETWORKS[name], leave_out=GIVEN)
    of_parametrization = options_of(PARAMETRIZATIONS[kind], leave_out=("process",))
    try:
        network = NETWORKS[name](
            **{key: value for key, value in given.items() if key in arguments},
            **{key: value for key, value in model.items() if key in of_network},
        )
        chosen = {key: value for key, value in model.items() if key in of_parametrization}
        parametrization = call_with(PARAMETRIZATIONS[kind], {"process": process}, chosen)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        # The arguments are all from the configuration, so an error of torch is about their values.
        raise InputError(f"model={name}: {error}") from error
    to_channels_last(network)
    return ScoreModel(network, parametrization)

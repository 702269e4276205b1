"""The noise levels and the weighting of a training run, from its configuration."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from losses.loss_history import LossHistory
from losses.noise_levels import NoiseLevelSampler, create_noise_levels
from losses.weighting import Weighting, create_weighting
from sde import Process
from utils.errors import InputError


class Objective(NamedTuple):
    """What training draws its times from and weighs its errors by.

    Attributes:
        noise_levels: distribution of the times.
        weighting: weight of the squared error by noise level.
        history: moments of the loss that one of the two follows; None if neither does.
    """

    noise_levels: NoiseLevelSampler
    weighting: Weighting
    history: LossHistory | None


def create_objective(training: Mapping[str, Any], process: Process, device: torch.device | str = "cpu") -> Objective:
    """Build what ``training.noise_levels``, ``training.weighting`` and ``training.likelihood_weighting`` name.

    Args:
        training: the section ``training`` of a configuration.
        process: the process.
        device: device of the losses, for their history.

    Raises:
        InputError: for an unknown name, an option out of range, two weightings, or if both parts follow the loss.
    """
    history = LossHistory(device)
    noise_levels = create_noise_levels(training, process, history)
    weighting = create_weighting(training, process, history)
    following = [part for part in (noise_levels, weighting) if getattr(part, "history", None) is history]
    if len(following) == 2:
        raise InputError(
            f"training.noise_levels={training['noise_levels']} and training.weighting={training['weighting']} both "
            "follow the loss at each noise level: choose one"
        )
    return Objective(noise_levels, weighting, history if following else None)

"""Exponential moving average of the weights."""

import copy
from typing import Any

import torch
from torch import nn

from models import ScoreNetwork
from utils.errors import InputError


class EMA:
    """A second copy of the network that holds the averaged weights, ready to evaluate and sample from.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that early averages forget the initialisation.

    Attributes:
        network: the copy, in evaluation mode.
    """

    def __init__(self, net: ScoreNetwork, decay: float) -> None:
        self.network = copy.deepcopy(net).eval()
        self.decay = decay
        self.num_updates = 0
        self._trainable = [p.requires_grad for p in net.parameters()]
        self.network.requires_grad_(False)

    @property
    def shadow_params(self) -> list[torch.Tensor]:
        """Averages of the trainable parameters, in the order of ``net.parameters()``."""
        return [p.data for _, p in self._select(self.network)]

    def _select(self, net: nn.Module) -> list[tuple[str, nn.Parameter]]:
        return [named for named, trainable in zip(net.named_parameters(), self._trainable, strict=True) if trainable]

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the averages towards the weights of ``net``."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.shadow_params, [p.data for _, p in self._select(net)], 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """The published layout: ``decay``, ``num_updates`` and the list ``shadow_params``."""
        return {"decay": self.decay, "num_updates": self.num_updates, "shadow_params": self.shadow_params}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned (the decay stays that of the configuration).

        Raises:
            InputError: if a tensor is missing, too many, or misshapen.
        """
        shadow_params, named = state["shadow_params"], self._select(self.network)
        if len(named) != len(shadow_params):
            raise InputError(f"{len(shadow_params)} EMA tensors for {len(named)} parameters")
        for (name, p), shadow in zip(named, shadow_params, strict=True):
            if p.shape != shadow.shape:
                raise InputError(f"{name} is {tuple(shadow.shape)}, the network wants {tuple(p.shape)}")
            p.data.copy_(shadow)
        self.num_updates = state["num_updates"]

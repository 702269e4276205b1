"""Moving averages of the weights: the published one, and those from which others are reconstructed after training."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from models import ScoreModel
from models.posthoc_ema import decay_of, gamma_of
from utils.errors import InputError


class EMA:
    """A copy of the model with averaged weights, to evaluate and sample from.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that early averages forget the initialisation.

    Args:
        model: model to average, with its initial weights.
        decay: largest decay of an update, in [0, 1].

    Attributes:
        model: the copy, in evaluation mode.
    """

    def __init__(self, model: ScoreModel, decay: float) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay
        self.num_updates = 0
        self._trainable = [p.requires_grad for p in model.parameters()]
        self.model.requires_grad_(False)

    @property
    def shadow_params(self) -> list[torch.Tensor]:
        """Averages of the trainable parameters, in the order of ``model.parameters()``."""
        return [p.data for _, p in self._select(self.model)]

    def _select(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """List the names and values of the trainable parameters."""
        return [named for named, trainable in zip(model.named_parameters(), self._trainable, strict=True) if trainable]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the averages towards the weights of ``model``."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.shadow_params, [p.data for _, p in self._select(model)], 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return the published layout: ``decay``, ``num_updates`` and the list ``shadow_params``."""
        return {"decay": self.decay, "num_updates": self.num_updates, "shadow_params": self.shadow_params}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, except the decay, which is that of the configuration.

        Raises:
            InputError: if the number or the shapes of the tensors are not those of the model.
        """
        shadow_params, named = state["shadow_params"], self._select(self.model)
        if len(named) != len(shadow_params):
            raise InputError(f"{len(shadow_params)} EMA tensors for {len(named)} parameters")
        for (name, p), shadow in zip(named, shadow_params, strict=True):
            if p.shape != shadow.shape:
                name = name.removeprefix("network.")  # the name in the checkpoint
                raise InputError(f"{name} is {tuple(shadow.shape)}, the network wants {tuple(p.shape)}")
            p.data.copy_(shadow)
        self.num_updates = state["num_updates"]


class PowerEMA:
    """Averages of the trainable parameters over a power of the step (Karras et al. 2024, models/posthoc_ema.py).

    They are float64: late in a long run an update moves an average by less than the last digit of float32.

    Args:
        model: model to average; its initial weights do not enter the averages.
        lengths: relative length of each average.

    Attributes:
        averages: averages by relative length and name in ``model.network``; undefined before the first update.
    """

    def __init__(self, model: ScoreModel, lengths: Sequence[float]) -> None:
        named = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
        self._parameters = list(named.values())
        self.averages = {
            float(x): {name: p.detach().to(torch.float64, copy=True) for name, p in named.items()} for x in lengths
        }
        self._gammas = {length: gamma_of(length) for length in self.averages}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights of the model after update ``step``, from 1."""
        weights = [p.data for p in self._parameters]
        for length, averages in self.averages.items():
            decay, values = decay_of(step, self._gammas[length]), list(averages.values())
            torch._foreach_mul_(values, decay)
            torch._foreach_add_(values, weights, alpha=1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return ``lengths``, and ``averages``: a list for each length, in the order of the parameters."""
        return {"lengths": list(self.averages), "averages": [list(own.values()) for own in self.averages.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            InputError: if the lengths or the shapes of the tensors are others.
        """
        if state["lengths"] != list(self.averages):
            raise InputError(
                f"training.ema_lengths={list(self.averages)}, but the run has averages of {state['lengths']} so far"
            )
        for own, stored in zip(self.averages.values(), state["averages"], strict=True):
            for (name, average), value in zip(own.items(), stored, strict=True):
                if average.shape != value.shape:
                    raise InputError(f"the average of {name} is {tuple(value.shape)}, not {tuple(average.shape)}")
                average.copy_(value)

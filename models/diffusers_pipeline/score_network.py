"""A score network as a model of diffusers."""

from importlib import import_module
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

# Not by a statement: for one that fails, diffusers advises to install a package of that name, which is another one.
try:
    create_model = import_module("models.create").create_model
except ImportError as error:
    raise ImportError(
        "the network is that of the reflected diffusion repository: add its folder to PYTHONPATH"
    ) from error


class ScoreNetwork(ModelMixin, ConfigMixin):
    """A network with the parametrization of its output: (sample, timestep, class_labels) -> score.

    Args:
        model: section ``model`` of the configuration of a run: network, parametrization and their options.
        data: its section ``data``: size, channels and classes.
        sde: its section ``sde``: process and noise levels.
    """

    @register_to_config
    def __init__(self, model: dict[str, Any], data: dict[str, Any], sde: dict[str, Any]) -> None:
        super().__init__()
        self.score = create_model(model, data, sde)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of an image, (C, H, W)."""
        return self.score.data_shape

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for a network without classes."""
        return self.score.num_classes

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Compute the score.

        Args:
            sample: points of the cube [0, 1]^D, (B, C, H, W).
            timestep: noise level, a number or (B,).
            class_labels: classes, int64 (B,), -1 for no class; None for no class in the whole batch.
            return_dict: whether to return an ``UNet2DOutput``.

        Raises:
            ValueError: for weights in half precision, in which noise levels cannot be embedded.
        """
        if self.dtype != torch.float32:
            raise ValueError(
                f"the weights are {self.dtype}: load them in float32, and use torch.autocast for half precision"
            )
        sigma = torch.as_tensor(timestep, dtype=sample.dtype, device=sample.device).expand(len(sample))
        score = self.score(sample, sigma, class_labels)
        return UNet2DOutput(sample=score) if return_dict else (score,)

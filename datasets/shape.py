"""Shape of the samples that the section ``data`` of a configuration describes."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig


def is_image(data: Mapping[str, Any] | DictConfig) -> bool:
    """Tell whether a sample is an image, and not an array, which has ``data.shape``."""
    return data.get("shape") is None


def data_shape(data: Mapping[str, Any] | DictConfig) -> tuple[int, ...]:
    """Return the shape of one sample: ``data.shape``, such as [2], or (num_channels, image_size, image_size)."""
    if data.get("shape") is not None:
        return tuple(data["shape"])
    return data["num_channels"], data["image_size"], data["image_size"]

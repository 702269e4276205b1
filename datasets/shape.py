"""The shape of one item of a data set, as a configuration describes it."""

from collections.abc import Mapping
from typing import Any


def data_shape(data: Mapping[str, Any]) -> tuple[int, ...]:
    """Read the shape of one item, without the batch axis, from the ``data`` section of a configuration.

    Args:
        data: either ``shape``, such as [D] for vectors or [C, H, W] for images, or ``num_channels`` and ``image_size``
            for square images.

    Returns:
        ``shape`` where it is given, otherwise (num_channels, image_size, image_size).
    """
    if data.get("shape") is not None:
        return tuple(data["shape"])
    return data["num_channels"], data["image_size"], data["image_size"]

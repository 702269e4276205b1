"""Options of the section ``data`` that every data set has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from datasets.shape import data_shape
from utils.errors import InputError
from utils.options import ImageSize, Name, Probability

MAX_IMAGE_SIZE = 512  # so that a loaded configuration fits into memory, unless its user asks for more


@dataclass(frozen=True)
class DataOptions:
    """Options of every data set; further options are the parameters of a data set's function."""

    dataset: Name
    classes: bool
    num_classes: Annotated[int, Field(ge=0, le=10**6)]
    random_flip: bool
    dequantize: bool


@dataclass(frozen=True)
class ImageOptions:
    """Options of a data set of square images."""

    image_size: ImageSize
    num_channels: Annotated[int, Field(ge=1, le=64)]
    random_crop: Annotated[int, Field(ge=0, le=1024)] = 0
    augment: Probability = 0.0


@dataclass(frozen=True)
class ShapeOptions:
    """Options of a data set whose samples are not square images."""

    shape: Annotated[Sequence[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=1, max_length=4)]


def check_shape(data: Mapping[str, Any], max_image_size: int = MAX_IMAGE_SIZE) -> None:
    """Raise InputError if a sample of ``data``, not cropped, has more values than a colour image of this size."""
    crop = data.get("random_crop") or 0
    if crop and data.get("shape") is not None:
        raise InputError(f"data.random_crop={crop}: samples of data.shape={data['shape']} are not cropped")
    stored = {**data, "image_size": data["image_size"] + crop} if crop else data
    if math.prod(data_shape(stored)) > 3 * max_image_size**2:
        key = "image_size" if data.get("shape") is None else "shape"
        larger = f" and data.random_crop={crop}" if crop else ""
        raise InputError(
            f"data.{key}={data[key]}{larger}: more values than a colour image of {max_image_size}x{max_image_size}; a "
            "larger max_image_size allows them"
        )

"""Options of the section ``data`` that every data set has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from datasets.shape import data_shape
from utils.errors import InputError
from utils.options import Name, Probability

LARGEST_SAMPLE = 3 * 512 * 512  # most values of a sample, so that a loaded configuration fits into memory


@dataclass(frozen=True)
class DataOptions:
    """Options of every data set; further options are the parameters of a data set's function."""

    dataset: Name
    classes: bool
    num_classes: Annotated[int, Field(ge=0, le=10**6)]
    random_flip: bool
    dequantize: bool
    augment: Probability = 0.0


@dataclass(frozen=True)
class ImageOptions:
    """Options of a data set of square images."""

    image_size: Annotated[int, Field(ge=1, le=1024)]
    num_channels: Annotated[int, Field(ge=1, le=64)]
    random_crop: Annotated[int, Field(ge=0, le=1024)] = 0


@dataclass(frozen=True)
class ShapeOptions:
    """Options of a data set whose samples are not square images."""

    shape: Annotated[Sequence[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=1, max_length=4)]


def check_shape(data: Mapping[str, Any]) -> None:
    """Raise InputError if a sample of ``data`` has too many values."""
    if math.prod(data_shape(data)) > LARGEST_SAMPLE:
        if data.get("shape") is not None:
            raise InputError(f"data.shape={data['shape']}: samples of more than {LARGEST_SAMPLE} values")
        raise InputError(f"data.image_size={data['image_size']}: images of more than {LARGEST_SAMPLE} numbers")

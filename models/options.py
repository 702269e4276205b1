"""Types of the options of networks, with bounds by which any loaded configuration fits into the memory of a machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from utils.options import Name, Probability

Width = Annotated[int, Field(ge=1, le=8192)]
NumBlocks = Annotated[int, Field(ge=1, le=256)]
Multiple = Annotated[int, Field(ge=1, le=64)]
Multiples = Annotated[Sequence[Multiple], Field(min_length=1, max_length=16)]
Resolutions = Annotated[Sequence[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=0, max_length=16)]


@dataclass(frozen=True)
class ModelOptions:
    """Options of the section ``model`` that are not those of the chosen network's constructor."""

    name: Name
    ema_rate: Probability

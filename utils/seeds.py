"""Where random numbers come from: each stream is a function of (seed, purpose, step or image)."""

from enum import IntEnum

import numpy as np
import torch
from torch import Generator


class Stream(IntEnum):
    """What a stream of random numbers is for; with the seed and the step it determines them."""

    INIT = 0
    TRAIN = 1
    EVAL = 2
    SAMPLE = 3
    LABEL = 4
    DROPOUT = 5
    DEQUANTIZE = 6
    PROBE = 7
    BOUND = 8
    PILOT = 9


def derived_seed(seed: int, stream: Stream, step: int = 0, *place: int) -> int:
    """A seed of 64 bits for (seed, stream, step), and a place in the step; different ones give unrelated streams."""
    return int(np.random.SeedSequence([seed, stream, step, *place]).generate_state(1, np.uint64)[0])


def seed_torch(seed: int, stream: Stream, step: int = 0, *place: int) -> None:
    """Make all that torch draws from here on a function of (seed, stream, step, place)."""
    torch.manual_seed(derived_seed(seed, stream, step, *place))


def image_generators(
    seed: int, images: range, device: torch.device | str = "cpu", stream: Stream = Stream.SAMPLE
) -> list[Generator]:
    """A generator for each image: what is random about image i is a function of (seed, i)."""
    return [Generator(device).manual_seed(derived_seed(seed, stream, i)) for i in images]

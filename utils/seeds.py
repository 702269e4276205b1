"""Random numbers whose streams are functions of (seed, purpose, step or number of the sample)."""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Generator, Tensor


class Stream(IntEnum):
    """Purpose of a stream of random numbers, which with the seed and the step determines them."""

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
    """Return a seed of 64 bits for (seed, stream, step, place); different ones give unrelated streams."""
    return int(np.random.SeedSequence([seed, stream, step, *place]).generate_state(1, np.uint64)[0])


def seed_torch(seed: int, stream: Stream, step: int = 0, *place: int) -> None:
    """Seed torch's default generators by (seed, stream, step, place)."""
    torch.manual_seed(derived_seed(seed, stream, step, *place))


def image_generators(
    seed: int, images: range, device: torch.device | str = "cpu", stream: Stream = Stream.SAMPLE
) -> list[Generator]:
    """Return a generator for each sample: the random numbers of sample i are a function of (seed, i).

    Args:
        seed: seed of the run.
        images: numbers of the samples.
        device: device that the random numbers are drawn on.
        stream: purpose of the random numbers.
    """
    return [Generator(device).manual_seed(derived_seed(seed, stream, i)) for i in images]


class BatchGenerator:
    """Random numbers for a batch of B samples, from one generator or from one for each sample.

    With a generator for each sample, the numbers of a sample do not depend on its batch.

    Args:
        generator: one generator for all samples, one for each of the B samples, or None for torch's default one.
    """

    def __init__(self, generator: Generator | Sequence[Generator] | None = None) -> None:
        self._shared = generator if isinstance(generator, Generator) else None
        self._each = None if generator is None or isinstance(generator, Generator) else list(generator)

    def rand(
        self, shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Draw uniform numbers in [0, 1), of ``shape`` (B, ...)."""
        return self._draw(torch.rand, shape, device=device, dtype=dtype)

    def randn(
        self, shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Draw standard normal numbers, of ``shape`` (B, ...)."""
        return self._draw(torch.randn, shape, device=device, dtype=dtype)

    def randn_like(self, x: Tensor) -> Tensor:
        """Draw standard normal numbers in the shape, type and device of ``x`` (B, ...)."""
        return self.randn(x.shape, x.device, x.dtype)

    def signs_like(self, x: Tensor, count: int) -> Tensor:
        """Draw ``count`` vectors of -1 and 1 for each sample of ``x`` (B, ...), (count, B, ...)."""
        if self._each is None:
            bits = torch.randint(2, (count, *x.shape), generator=self._shared, device=x.device)
        else:
            shape = (count, *x.shape[1:])
            generators = self._sample_generators(len(x))
            bits = torch.stack([torch.randint(2, shape, generator=g, device=x.device) for g in generators], dim=1)
        return bits.to(x.dtype) * 2.0 - 1.0

    def stratified(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw a uniform number in [0, 1) for each of ``n`` samples, float64 (n,).

        From one generator, one number falls in each of n equal intervals, in random order; from a generator for each
        sample, they are independent.
        """
        if self._each is not None:
            return self.rand((n,), device, torch.float64)
        order = torch.randperm(n, generator=self._shared, device=device)
        return (order + self.rand((n,), device, torch.float64)) / n

    def _draw(self, function, shape: Sequence[int], **kind) -> Tensor:  # type: ignore[no-untyped-def]
        if self._each is None:
            return function(tuple(shape), generator=self._shared, **kind)
        generators = self._sample_generators(shape[0])
        return torch.stack([function(tuple(shape[1:]), generator=g, **kind) for g in generators])

    def _sample_generators(self, n: int) -> list[Generator]:
        if self._each is None or len(self._each) != n:
            raise ValueError(f"{len(self._each or ())} generators for {n} samples")
        return self._each

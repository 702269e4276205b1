"""Drawing numbered samples, each a function of (seed, its number)."""

from collections.abc import Callable

import torch
from torch import Tensor

from sampling.base import Sampler, Samples
from sampling.guidance import guided_score
from sde import Process
from utils.seeds import image_generators


def draw_samples(
    net: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    process: Process,
    sampler: Sampler,
    data_shape: tuple[int, ...],
    numbers: range,
    seed: int,
    labels: Tensor | None = None,
    w: float = 0.0,
    on_step: Callable[[], object] | None = None,
    device: torch.device | str = "cpu",
) -> Samples:
    """Draw samples with the given ``numbers`` in one batch; a sample does not depend on the others.

    Args:
        net: score network, called as net(x, sigma, labels).
        process: diffusion process, whose prior the samples start from.
        sampler: sampler to run.
        data_shape: shape of a sample.
        numbers: numbers of the samples.
        seed: seed of their noise.
        labels: classes of the samples, int64 (len(numbers),), or conditions, float32 (len(numbers), K), on ``device``;
            None for a network without both, or for none.
        w: guidance weight.
        on_step: function called ``sampler.num_steps`` times, for a progress bar.
        device: device of the network.
    """
    generators = image_generators(seed, numbers, device)
    x_init = process.prior_sample((len(numbers), *data_shape), generators, device)
    return sampler(guided_score(net, labels, w), x_init, generators, on_step)

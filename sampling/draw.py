"""Drawing numbered samples, each a function of (seed, its number)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sampling.base import Sampler, Samples
from sampling.guidance import UNCHANGED, ScoreNetwork, guided_score
from sampling.imputation import PARTICLES, STEPS, impute
from sde import Process
from utils.errors import InputError
from utils.guidance_options import GuidanceOptions
from utils.seeds import image_generators


def draw_samples(
    net: ScoreNetwork,
    process: Process,
    sampler: Sampler,
    data_shape: tuple[int, ...],
    numbers: range,
    seed: int,
    labels: Tensor | None = None,
    w: float = 0.0,
    on_step: Callable[[], object] | None = None,
    device: torch.device | str = "cpu",
    *,
    guidance: GuidanceOptions = UNCHANGED,
    weak: ScoreNetwork | None = None,
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
        guidance, weak: what else is done with the score, and the network of autoguidance, see ``guided_score``.
    """
    generators = image_generators(seed, numbers, device)
    x_init = process.prior_sample((len(numbers), *data_shape), generators, device)
    return sampler(guided_score(net, labels, w, guidance, process, weak), x_init, generators, on_step)


def draw_imputed(
    net: ScoreNetwork,
    process: Process,
    given: Tensor,
    known: Tensor,
    numbers: range,
    seed: int,
    labels: Tensor | None = None,
    w: float = 0.0,
    on_step: Callable[[], object] | None = None,
    *,
    steps: int = STEPS,
    particles: int = PARTICLES,
    batch_size: int = 4096,
    guidance: GuidanceOptions = UNCHANGED,
    weak: ScoreNetwork | None = None,
) -> Samples:
    """Draw the unknown values of samples with the given ``numbers``; a sample does not depend on the others.

    Args:
        net: score network, called as net(x, sigma, labels).
        process: diffusion process.
        given, known: known values, (len(numbers), *shape), and which they are, see ``impute``; on the device of the
            network.
        numbers: numbers of the samples.
        seed: seed of their noise.
        labels: classes or conditions of the samples, see ``draw_samples``.
        w: guidance weight.
        on_step: function called ``steps`` times for each group of ``group_size`` samples.
        steps, particles: see ``impute``.
        batch_size: largest number of rows that the network is given at once, unless ``particles`` is larger.
        guidance, weak: what else is done with the score, and the network of autoguidance, see ``guided_score``; without
            a momentum, because particles take each other's places.

    Raises:
        InputError: for a momentum, or what ``impute`` refuses.
    """
    if guidance.momentum:
        raise InputError(f"guidance.momentum={guidance.momentum} does not go with given values: leave it out")
    generators = image_generators(seed, numbers, given.device)
    size, parts = group_size(particles, batch_size), []
    for rows in (slice(start, start + size) for start in range(0, len(given), size)):
        repeated = None if labels is None else labels[rows].repeat_interleave(particles, 0)
        draw = partial(impute, generator=generators[rows], steps=steps, particles=particles, on_step=on_step)
        score_fn = guided_score(net, repeated, w, guidance, process, weak)
        parts.append(draw(score_fn, process, given[rows], known[rows]))
    return Samples(torch.cat([part.samples for part in parts]), parts[0].nfe)


def group_size(particles: int, batch_size: int) -> int:
    """Return how many samples ``draw_imputed`` draws at once."""
    return max(1, batch_size // particles)

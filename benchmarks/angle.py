"""What error does a rounded embedding angle cause in a trained DDPM++? python -m benchmarks.angle RUN [RUN ...]"""

import argparse
import copy
import math

import numpy as np
import torch
from torch import Tensor

from models import ScoreModel, load_pretrained
from models.ddpmpp import DDPMpp, FourierEmbedding

IMAGES = 400


class RoundedEmbedding(FourierEmbedding):
    """Embedding of the noise level with the angle in float32, in the order of operations of the published code."""

    def forward(self, sigma: Tensor) -> Tensor:
        angle = torch.log(sigma)[:, None] * self.frequencies * 2 * np.pi
        return torch.cat([angle.sin(), angle.cos()], dim=1)


@torch.no_grad()
def largest_errors(net: ScoreModel, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Compute the largest relative error of an image in float32 against float64, with exact and with rounded angles.

    Args:
        net: trained DDPM++, float32.
        sigma_min: lowest noise level.
        sigma_max: highest noise level; the levels are equidistant in their logarithm.

    Returns:
        The errors with the angle in float64 and with the angle rounded to float32.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(IMAGES, *net.data_shape, generator=generator)
    sigma = torch.exp(torch.linspace(math.log(sigma_min), math.log(sigma_max), IMAGES))
    exact = copy.deepcopy(net).double()(x.double(), sigma.double()).flatten(1)
    rounded = copy.deepcopy(net)
    rounded.network.fourier.__class__ = RoundedEmbedding

    def error(score: Tensor) -> float:
        return ((score.flatten(1) - exact).norm(dim=1) / exact.norm(dim=1)).max().item()

    return error(net(x, sigma)), error(rounded(x, sigma))


def main() -> None:
    """Print the errors of each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="directories of runs with model=ddpmpp")
    for run in parser.parse_args().runs:
        net, cfg = load_pretrained(run)
        if not isinstance(net.network, DDPMpp):
            parser.error(f"{run} has no DDPM++")
        here, published = largest_errors(net, cfg.sde.sigma_min, cfg.sde.sigma_max)
        print(f"{run}: float32 against float64 {here:.1e}, with the angle rounded {published:.1e}")


if __name__ == "__main__":
    main()

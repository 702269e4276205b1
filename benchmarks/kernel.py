"""How fast is the exact heat kernel? python -m benchmarks.kernel [--compile]

Measures sampling, log density and score for images (128, 3, 32, 32) of mixed noise levels. They are compared with the
definition evaluated directly in float32 (21 mirror images on either side or 20 cosines in each coordinate), and with a
lower limit: reading and writing the tensors.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.memory import peak_bytes
from benchmarks.timing import device_name, interleaved, table
from models import compiled
from sde import ReflectedVE, heat_kernel

SHAPE, REPEATS = (128, 3, 32, 32), 7


def evaluate_definition(x: Tensor, x0: Tensor, sigma: Tensor, score: bool) -> Tensor:
    """Compute the log density or score by the definition: mirror images for small sigma, cosines for large.

    Args:
        x: points, (B, C, H, W).
        x0: start points, (B, C, H, W).
        sigma: noise levels, (B,).
        score: whether to return the score instead of the log density.
    """
    sigma = sigma[:, None, None, None]
    k = torch.arange(-10, 11, device=x.device, dtype=x.dtype)
    centres = torch.cat([x0[..., None] + 2 * k, -x0[..., None] + 2 * k], -1)
    offset = centres - x[..., None]
    weights = torch.exp(-0.5 * (offset / sigma[..., None]) ** 2)
    total = weights.sum(-1)
    n = torch.arange(1, 21, device=x.device, dtype=x.dtype)
    decay = torch.exp(-0.5 * (n * math.pi * sigma[..., None]) ** 2)
    product = 2 * decay * torch.cos(n * math.pi * x0[..., None])
    angle = n * math.pi * x[..., None]
    series = 1 + (product * torch.cos(angle)).sum(-1)
    small = sigma < 0.5
    if not score:
        images = total.clamp(min=1e-30).log() - torch.log(sigma * math.sqrt(2 * math.pi))
        return torch.where(small, images, series.clamp(min=1e-30).log())
    images = (weights * offset).sum(-1) / (total.clamp(min=1e-30) * sigma**2)
    return torch.where(small, images, -(product * n * math.pi * torch.sin(angle)).sum(-1) / series)


def main() -> None:
    """Print the times of score, log density and sampling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also measure the compiled kernel")
    compiling = parser.parse_args().compile
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    sde = ReflectedVE(0.01, 5.0)
    x0 = torch.rand(SHAPE, device=device, generator=generator)
    sigma = sde.sigma(torch.rand(SHAPE[0], device=device, generator=generator))
    x = heat_kernel.sample(x0, sigma, generator)

    error = (heat_kernel.score(x, x0, sigma) - evaluate_definition(x, x0, sigma, True)).abs()
    error *= sigma[:, None, None, None]
    print(f"{device_name()}; images {SHAPE}, sigma from 0.01 to 5")
    print(f"sigma * score, this code and the definition: {error.quantile(0.99):.1e} apart at the 99th percentile")
    for name, function, score in (("score", heat_kernel.score, True), ("log density", heat_kernel.log_density, False)):
        ways: dict[str, Callable[[], object]] = {
            "definition": partial(evaluate_definition, x, x0, sigma, score),
            "this code": partial(function, x, x0, sigma),
            "limit: x + x0": lambda: torch.add(x, x0),
        }
        if compiling:
            ways["compiled"] = partial(compiled(function), x, x0, sigma)
        print(f"{name}, and how many times as fast as the definition")
        print(table(interleaved(ways, REPEATS), "definition"))
        batch = x.numel() * x.element_size()
        extra = peak_bytes(ways["this code"]) / batch - 1
        print(f"  apart from the result, this code takes {extra:.1f} times the memory of the batch")
    ways = {
        "this code": lambda: heat_kernel.sample(x0, sigma, generator),
        "limit: normal numbers": lambda: torch.randn(SHAPE, device=device, generator=generator),
    }
    print("sampling")
    print(table(interleaved(ways, REPEATS), "this code"))


if __name__ == "__main__":
    main()

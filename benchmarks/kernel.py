"""What does the exact kernel cost? python -m benchmarks.kernel [--compile]

Drawing from it, its log density and its score for images (128, 3, 32, 32) of mixed noise levels, beside the textbook
evaluation, written here: 21 images on either side or 20 cosines in each coordinate, in float32, and the floor, which is
reading and writing the tensors.
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


def textbook(x: Tensor, x0: Tensor, sigma: Tensor, score: bool) -> Tensor:
    """Log density or score by the definition, all terms at once: images for small sigma, cosines for large."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also compiled, in one pass: some seconds more")
    compiling = parser.parse_args().compile
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    sde = ReflectedVE(0.01, 5.0)
    x0 = torch.rand(SHAPE, device=device, generator=generator)
    sigma = sde.sigma(torch.rand(SHAPE[0], device=device, generator=generator))
    x = heat_kernel.sample(x0, sigma, generator)

    apart = (heat_kernel.score(x, x0, sigma) - textbook(x, x0, sigma, True)).abs() * sigma[:, None, None, None]
    print(f"{device_name()}; images {SHAPE}, sigma from 0.01 to 5")
    print(f"sigma * score, ours and the textbook's: {apart.quantile(0.99):.1e} apart at the 99th percentile")
    for name, function, score in (("score", heat_kernel.score, True), ("log density", heat_kernel.log_density, False)):
        ways: dict[str, Callable[[], object]] = {
            "textbook": partial(textbook, x, x0, sigma, score),
            "ours": partial(function, x, x0, sigma),
            "floor: x + x0": lambda: torch.add(x, x0),
        }
        if compiling:
            ways["ours, compiled"] = partial(compiled(function), x, x0, sigma)
        print(f"{name}, x faster than the textbook's")
        print(table(interleaved(ways, REPEATS), "textbook"))
        batch = x.numel() * x.element_size()
        print(f"  beside the result, ours takes {peak_bytes(ways['ours']) / batch - 1:.1f} times the batch's memory")
    ways = {
        "ours": lambda: heat_kernel.sample(x0, sigma, generator),
        "floor: normal numbers": lambda: torch.randn(SHAPE, device=device, generator=generator),
    }
    print("drawing")
    print(table(interleaved(ways, REPEATS), "ours"))


if __name__ == "__main__":
    main()

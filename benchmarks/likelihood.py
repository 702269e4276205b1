"""What do the probes of Hutchinson's estimator cost? python -m benchmarks.likelihood

Compares one evaluation of score and divergence, with 1, 2, 4 and 8 sign vectors, with a forward pass of the network.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.networks import network
from benchmarks.timing import device_name, interleaved
from evaluation.likelihood import _score_and_trace
from sde import ReflectedVE
from utils.seeds import BatchGenerator

BATCH, REPEATS = 16, 3


def main() -> None:
    """Print the time for each number of probes."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = network("ddpmpp").to(device).eval().requires_grad_(False)
    x, sigma = torch.rand(BATCH, 3, 32, 32, device=device), torch.full((BATCH,), 0.5, device=device)
    print(f"{device_name()}; DDPM++ of {sum(p.numel() for p in net.parameters()):,} parameters, {BATCH} images")

    def forward() -> None:
        with torch.no_grad():
            net(x, sigma)

    ways: dict[str, Callable[[], object]] = {"forward": forward}
    for probes in (1, 2, 4, 8):
        signs = BatchGenerator().signs_like(x, probes)
        ways[f"{probes} probes"] = partial(_score_and_trace, ReflectedVE(), net, x, sigma, signs)
    seconds = interleaved(ways, REPEATS)
    for name, seen in seconds.items():
        ratios = sorted(s / b for s, b in zip(seen, seconds["forward"], strict=True))
        print(f"  {name:9} {sorted(seen)[REPEATS // 2]:6.3f} s, {ratios[REPEATS // 2]:.2f} of a forward pass")


if __name__ == "__main__":
    main()

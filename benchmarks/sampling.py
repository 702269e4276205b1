"""What overhead does a sampler add to its network? python -m benchmarks.sampling [--compile] [--precision bf16]

Compares each sampler, with a small DDPM++ for 32x32 colour images, with the same number of forward passes.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.networks import network
from benchmarks.timing import device_name, interleaved
from models import compile_network
from models.score_model import PRECISIONS
from sampling import Sampler, create_sampler
from sde import ReflectedVE

BATCH, REPEATS = 16, 3
SAMPLERS = {
    "pc": {"method": "pc", "steps": 12},
    "pc with langevin": {"method": "pc", "steps": 6, "corrector": "langevin"},
    "heun": {"method": "heun", "steps": 6},
    "multistep": {"method": "multistep", "steps": 12},
    "ode": {"method": "ode", "rtol": 0.05, "atol": 0.05},
}


def main() -> None:
    """Print the speed of each sampler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile the network, which takes minutes on a CPU")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = network("ddpmpp").to(device).eval().requires_grad_(False)
    parameters = sum(p.numel() for p in net.parameters())
    if arguments.compile:
        compile_network(net)
    net.set_precision(arguments.precision)
    sde = ReflectedVE(0.01, 5.0)
    start = sde.prior_sample((BATCH, 3, 32, 32), torch.Generator(device).manual_seed(0), device)
    sigma = torch.full((BATCH,), 0.5, device=device)
    print(f"{device_name()}; DDPM++ of {parameters:,} parameters, {BATCH} images")
    for name, options in SAMPLERS.items():
        sampler = create_sampler(options, sde)
        nfe = sampler(net, start, torch.Generator(device).manual_seed(0)).nfe

        def forward(nfe: int = nfe) -> None:
            with torch.no_grad():
                for _ in range(nfe):
                    net(start, sigma)

        def sample(sampler: Sampler = sampler) -> None:
            sampler(net, start, torch.Generator(device).manual_seed(0))

        ways: dict[str, Callable[[], object]] = {"forward": forward, "sampler": sample}
        seconds = interleaved(ways, REPEATS)
        ratios = sorted(s / b for s, b in zip(seconds["sampler"], seconds["forward"], strict=True))
        rate = BATCH / sorted(seconds["sampler"])[REPEATS // 2]
        print(f"  {name:17} {nfe:3} evaluations, {rate:7.2f} images/s, {ratios[REPEATS // 2]:.3f} of forward passes")


if __name__ == "__main__":
    main()

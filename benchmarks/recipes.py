"""What does a recipe of the paper cost? python -m benchmarks.recipes [TFLOP/s]

Counts the operations of network and gradient, and computes the hours that they take on one device at a given rate,
which benchmarks.step measures. The default is 400 TFLOP/s, 40 % of the dense bf16 peak of an H100.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import composed
from models import create_model

RECIPES = ("cifar10_images", "cifar10_likelihood", "imagenet32_likelihood", "imagenet64_guided")


def main() -> None:
    """Print the cost of each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rate", nargs="?", type=float, default=400.0, help="rate of a training step, in TFLOP/s")
    rate = parser.parse_args().rate
    for recipe in RECIPES:
        cfg = composed(f"experiment={recipe}")
        with FlopCounterMode(display=False) as counter:
            net = create_model(cfg.model, cfg.data, cfg.sde)
            net(torch.rand(1, cfg.data.num_channels, *[cfg.data.image_size] * 2), torch.ones(1)).sum().backward()
        parameters = sum(p.numel() for p in net.parameters())
        images = cfg.training.batch_size * cfg.training.n_iters
        work = counter.get_total_flops() * images
        print(
            f"{recipe:22} {parameters / 1e6:4.0f} million parameters  {counter.get_total_flops() / 1e9:5.0f} GFLOP per "
            f"image and step  {images / 1e6:5.0f} million images  {work / 1e18:6.0f} EFLOP  "
            f"{work / rate / 3.6e15:5.0f} hours at {rate:g} TFLOP/s"
        )


if __name__ == "__main__":
    main()

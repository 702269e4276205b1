"""How long does a training step take? python -m benchmarks.step [--batch N] [--compile] [--profile] [NETWORK ...]

Measures each network on random 32x32 colour images, compared with a plain step written here: eager float32, loops over
the parameters in optimizer and EMA, the kernel by its definition, and the loss read in every step. The limit is the
time of the operations of network and gradient at the rate of a large matrix product of the same precision. On a GPU the
script uses the published networks, compiled, and also prints the fraction of the peak rate of the card.
"""

import argparse
import copy
import statistics
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.kernel import evaluate_definition
from benchmarks.memory import peak_bytes
from benchmarks.networks import config, network
from benchmarks.timing import device_name, interleaved
from datasets import Loader, load_images
from sde import ReflectedVE, create_process
from training.loop import Loss, create_state, train_step
from utils.distributed import Distributed

REPEATS, MATRIX = 5, 2048
# Dense bf16 operations per second with tensor cores, from the data sheets.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
# Kinds of operations, by substrings of their names
KINDS = {
    "convolution": ("conv",),
    "attention": ("scaled_dot_product", "flash", "fmha"),
    "normalisation": ("norm",),
    "dropout": ("bernoulli", "dropout"),
    "SiLU": ("silu",),
    "optimizer and EMA": ("adam", "Adam", "lerp"),
    "copies and casts": ("copy", "::to", "cat"),
    "linear maps": ("mm", "gemm"),
    "sums and products": ("::add", "::mul", "::div", "::sum", "elementwise"),
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plain_step(kind: str, batch: int) -> Callable[[], None]:
    """Make a function that performs a plain training step."""
    cfg = config(kind)
    net = network(kind).to(DEVICE).to(memory_format=torch.contiguous_format)
    average = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, foreach=False)
    sde = ReflectedVE(cfg.sde.sigma_min, cfg.sde.sigma_max)
    images = torch.rand(batch, 3, 32, 32, device=DEVICE)

    def step() -> None:
        sigma = sde.sigma(torch.rand(batch, device=DEVICE))
        x = images + sigma[:, None, None, None] * torch.randn_like(images)
        x = 1 - (x % 2 - 1).abs()
        target = evaluate_definition(x, images, sigma, True)
        loss = (0.5 * ((net(x, sigma) - target) * sigma[:, None, None, None]) ** 2).flatten(1).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=False)
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(p, 1e-4)
        loss.item()

    return step


def our_step(kind: str, batch: int, *options: str) -> Callable[[], None]:
    """Make a function that performs the training step of run_train.py, with its options."""
    cfg = config(kind, f"training.batch_size={batch}", *options)
    state, distributed, loss_fn = create_state(cfg, DEVICE), Distributed(DEVICE), Loss(cfg, create_process(cfg.sde))
    images = load_images("fake", True, image_size=cfg.data.image_size, num_channels=3, num_classes=10)
    batches = Loader(images, batch, cfg.seed, DEVICE)

    def step() -> None:
        train_step(loss_fn, state.model, state, loss_fn.sample_batch(batches, state.step), distributed, 1e-4, 1.0)

    return step


def flops(kind: str, batch: int) -> int:
    """Count the operations of network and gradient in a step."""
    net = network(kind)
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, 32, 32), torch.ones(1)).sum().backward()
    return batch * counter.get_total_flops()


def matrix_rate(dtype: torch.dtype) -> float:
    """Measure the operations per second of a large matrix product."""
    a = torch.randn(MATRIX, MATRIX, device=DEVICE).to(dtype)
    return 2 * MATRIX**3 / min(interleaved({"": lambda: a @ a}, REPEATS)[""])


def profile(step: Callable[[], None]) -> str:
    """List the kinds of operations that take more than 1 % of the time of a step, in decreasing order."""
    with torch.profiler.profile() as seen:
        step()
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "other")
        spent[kind] += event.self_device_time_total if DEVICE.type == "cuda" else event.self_cpu_time_total
    return ", ".join(f"{kind} {t / spent.total():.0%}" for kind, t in spent.most_common() if t > 0.01 * spent.total())


def main() -> None:
    """Print the times of a training step of each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = DEVICE.type == "cuda"
    parser.add_argument("networks", nargs="*", default=["ddpmpp", "vdm", "adm"], help="ddpmpp, vdm, adm")
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 16)
    parser.add_argument("--compile", action="store_true", default=on_gpu, help="also compiled: minutes on a CPU")
    parser.add_argument("--profile", action="store_true", help="print how a step in bf16 spends its time")
    arguments = parser.parse_args()
    rates = {"fp32": matrix_rate(torch.float32), "bf16": matrix_rate(torch.bfloat16)}
    peak = next((rate for name, rate in PEAKS.items() if name in device_name()), None)
    print(f"{device_name()}; matrix products: {', '.join(f'{k} {v / 1e12:.3g} TFLOP/s' for k, v in rates.items())}")
    for kind in arguments.networks:
        ways = {
            "plain": plain_step(kind, arguments.batch),
            "fp32": our_step(kind, arguments.batch),
            "fp32, checkpointed": our_step(kind, arguments.batch, "training.activation_checkpointing=true"),
            "bf16": our_step(kind, arguments.batch, "precision=bf16"),
        }
        if arguments.compile:
            ways["bf16, compile"] = our_step(kind, arguments.batch, "precision=bf16", "compile=true")
        work = flops(kind, arguments.batch)
        seconds = interleaved(ways, REPEATS, warm=2)
        print(f"{kind}, batch {arguments.batch}, {work / arguments.batch / 1e9:.3g} GFLOP per image and step")
        for name, seen in seconds.items():
            ratio = statistics.median(p / s for p, s in zip(seconds["plain"], seen, strict=True))
            took = statistics.median(seen)
            limit = work / rates["bf16" if "bf16" in name else "fp32"] / took
            share = f", {work / took / peak:.0%} of the peak rate" if peak else ""
            counted = on_gpu or "compile" not in name  # not possible on a CPU for fused operations
            memory = f", {peak_bytes(ways[name]) / 2**20:.0f} MiB peak memory" if counted else ""
            print(
                f"  {name:18} {took * 1e3:7.1f} ms  x {ratio:.2f}  {arguments.batch / took:7.1f} images/s, "
                f"limit {limit:.0%} of it{share}{memory}"
            )
        if arguments.profile:
            print(f"  bf16: {profile(ways['bf16'])}")


if __name__ == "__main__":
    main()

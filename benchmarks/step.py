"""How long does a training step take? python -m benchmarks.step [--batch N] [--compile] [--profile] [NETWORK ...]

Steps of each network on random 32x32 images in colour, beside a plain one written here: eager float32, a loop over the
parameters in optimiser and average, the textbook's kernel, and a look at the loss each time. The floor is what the
operations of network and gradient would take at the rate of a large matrix product of the same precision. On a GPU with
the published networks, and compiled; there it also prints the share of the card's peak.
"""

import argparse
import copy
import statistics
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.kernel import textbook
from benchmarks.memory import peak_bytes
from benchmarks.networks import config, network
from benchmarks.timing import device_name, interleaved
from datasets import Loader, load_images
from sde import ReflectedVE, create_process
from training.loop import Loss, create_state, train_step
from utils.distributed import Distributed

REPEATS, MATRIX = 5, 2048
# Dense bf16 operations a second with tensor cores, of the makers' data sheets.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
# Of operations, by what their names hold
KINDS = {
    "convolution": ("conv",),
    "attention": ("scaled_dot_product", "flash", "fmha"),
    "normalisation": ("norm",),
    "dropout": ("bernoulli", "dropout"),
    "SiLU": ("silu",),
    "optimiser and average": ("adam", "Adam", "lerp"),
    "copies and casts": ("copy", "::to", "cat"),
    "linear maps": ("mm", "gemm"),
    "sums and products": ("::add", "::mul", "::div", "::sum", "elementwise"),
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plain_step(kind: str, batch: int) -> Callable[[], None]:
    """The step as a textbook has it."""
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
        target = textbook(x, images, sigma, True)
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
    """The step of training, with options of run_train.py."""
    cfg = config(kind, f"training.batch_size={batch}", *options)
    state, distributed, loss_fn = create_state(cfg, DEVICE), Distributed(DEVICE), Loss(cfg, create_process(cfg.sde))
    images = load_images("fake", True, image_size=cfg.data.image_size, num_channels=3, num_classes=10)
    batches = Loader(images, batch, cfg.seed, DEVICE)

    def step() -> None:
        train_step(loss_fn, state.model, state, loss_fn.sample_batch(batches, state.step), distributed, 1e-4, 1.0)

    return step


def flops(kind: str, batch: int) -> int:
    """Operations of network and gradient in a step."""
    net = network(kind)
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, 32, 32), torch.ones(1)).sum().backward()
    return batch * counter.get_total_flops()


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    a = torch.randn(MATRIX, MATRIX, device=DEVICE).to(dtype)
    return 2 * MATRIX**3 / min(interleaved({"": lambda: a @ a}, REPEATS)[""])


def profile(step: Callable[[], None]) -> str:
    """The kinds of operation in which a step spends more than a hundredth of its time, the longest first."""
    with torch.profiler.profile() as seen:
        step()
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "other")
        spent[kind] += event.self_device_time_total if DEVICE.type == "cuda" else event.self_cpu_time_total
    return ", ".join(f"{kind} {t / spent.total():.0%}" for kind, t in spent.most_common() if t > 0.01 * spent.total())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = DEVICE.type == "cuda"
    parser.add_argument("networks", nargs="*", default=["ddpmpp", "vdm", "adm"], help="ddpmpp, vdm, adm")
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 16)
    parser.add_argument("--compile", action="store_true", default=on_gpu, help="also compiled: minutes on a CPU")
    parser.add_argument("--profile", action="store_true", help="what a step in bf16 spends its time on")
    arguments = parser.parse_args()
    rates = {"fp32": matrix_rate(torch.float32), "bf16": matrix_rate(torch.bfloat16)}
    peak = next((rate for name, rate in PEAKS.items() if name in device_name()), None)
    print(f"{device_name()}; matrix products: {', '.join(f'{k} {v / 1e12:.3g} TFLOP/s' for k, v in rates.items())}")
    for kind in arguments.networks:
        ways = {
            "plain": plain_step(kind, arguments.batch),
            "fp32": our_step(kind, arguments.batch),
            "fp32, recompute": our_step(kind, arguments.batch, "training.activation_checkpointing=true"),
            "bf16": our_step(kind, arguments.batch, "precision=bf16"),
        }
        if arguments.compile:
            ways["bf16, compile"] = our_step(kind, arguments.batch, "precision=bf16", "compile=true")
        work = flops(kind, arguments.batch)
        seconds = interleaved(ways, REPEATS, warm=2)
        print(f"{kind}, batch {arguments.batch}, {work / arguments.batch / 1e9:.3g} GFLOP an image and step")
        for name, seen in seconds.items():
            ratio = statistics.median(p / s for p, s in zip(seconds["plain"], seen, strict=True))
            took = statistics.median(seen)
            floor = work / rates["bf16" if "bf16" in name else "fp32"] / took
            share = f", {work / took / peak:.0%} of the card's peak" if peak else ""
            counted = on_gpu or "compile" not in name  # on a CPU the operations are watched, and these are fused
            memory = f", {peak_bytes(ways[name]) / 2**20:.0f} MiB at its peak" if counted else ""
            print(
                f"  {name:15} {took * 1e3:7.1f} ms  x {ratio:.2f}  {arguments.batch / took:7.1f} images/s, "
                f"floor {floor:.0%} of it{share}{memory}"
            )
        if arguments.profile:
            print(f"  bf16: {profile(ways['bf16'])}")


if __name__ == "__main__":
    main()

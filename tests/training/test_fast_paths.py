"""Options that make a step fast: each gives the same numbers as without it, and resumes exactly."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import PeakMemory
from models import compile_network, compiled, create_model, recompute_activations
from sde import heat_kernel
from tests.conftest import TINY, assert_same, metrics, read, tiny_config
from tests.models.test_models import SMALL, with_published_weights
from tests.sde.test_heat_kernel import GOLDEN, columns, scaled_error
from training.loop import train
from training.metric_writer import MetricWriter
from training.optimizer import create_optimizer, load_optimizer
from utils.distributed import Distributed

CPU = Distributed(torch.device("cpu"))


def gradients(net, *inputs):
    net.zero_grad()
    net(*inputs).square().mean().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


def far(tensors, references):
    """Compute the largest relative distance between two lists of tensors."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(tensors, references, strict=True))


def test_the_compiled_kernel_is_as_exact():
    score = compiled(heat_kernel.score)(*columns(torch.float32)).double().numpy()
    assert scaled_error(score * GOLDEN["sigma"], GOLDEN["score"] * GOLDEN["sigma"]) < 1e-6


@pytest.mark.slow(25)
@pytest.mark.parametrize("parametrization", ["output", "kernel_width"])
def test_a_compiled_network_is_the_network_in_one_graph_for_batches_of_all_sizes(parametrization):
    cfg = tiny_config("model.dropout=0", f"model.parametrization={parametrization}")
    plain, fast = (create_model(cfg.model, cfg.data, cfg.sde) for _ in range(2))
    for p in plain.parameters():
        nn.init.normal_(p, std=0.1)  # a fresh one gives zeros
    fast.load_state_dict(plain.state_dict())
    compile_network(fast)
    torch._dynamo.reset()  # the number of compilations of a function in one process, the tests', is limited
    graphs = []
    for batch in (8, 20, 33, 3, 1):
        x, sigma, labels = torch.rand(batch, 1, 8, 8), 0.01 + torch.rand(batch), torch.arange(-1, batch - 1) % 10
        assert far(gradients(fast, x, sigma, labels), gradients(plain, x, sigma, labels)) < 1e-5
        with torch.no_grad():
            x = x.to(memory_format=torch.channels_last)
            assert far([fast(x, sigma, labels)], [plain(x, sigma, labels)]) < 1e-5
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs)) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("network", SMALL)
def test_recomputed_activations_give_the_same_gradient_with_less_memory(network):
    net = with_published_weights(network).train()
    x, sigma = torch.rand(4, 3, 16, 16), torch.tensor([0.01, 0.1, 1.0, 5.0])

    def gradients_and_peak():
        torch.manual_seed(0)  # of dropout
        with PeakMemory() as memory:
            found = gradients(net, x, sigma, None)
        return [grad.clone() for grad in found], memory.peak

    kept, peak = gradients_and_peak()
    recompute_activations(net)
    again, smaller = gradients_and_peak()
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert smaller < 0.75 * peak


def test_moments_get_the_memory_format_of_their_parameter():
    """A checkpoint may be older than channels_last, and a fused kernel pairs elements by position in memory."""
    cfg = tiny_config()
    parameters = [nn.Parameter(torch.randn(4, 3, 3, 3)) for _ in range(2)]
    parameters[1].data = parameters[0].data.to(memory_format=torch.channels_last)
    old, new = (create_optimizer([p], cfg.optim) for p in parameters)
    for step in range(3):
        if step == 1:
            load_optimizer(new, copy.deepcopy(old.state_dict()))
            parameters[1].data.copy_(parameters[0].data)
        gradient = torch.randn(4, 3, 3, 3)
        for p in parameters:
            p.grad = torch.empty_like(p).copy_(gradient)
        old.step()
        new.step()
    assert torch.allclose(*parameters, rtol=1e-6)


SWITCHES = {
    "recompute_activations": ["training.activation_checkpointing=true"],
    "bf16": ["precision=bf16"],
    "all and compile": ["compile=true", "training.activation_checkpointing=true", "precision=bf16"],
}


@pytest.mark.slow(45)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_run_with_each_switch_resumes_exactly(switch, tmp_path, monkeypatch):
    """With compile=true nothing is compiled after the first evaluation and drawing, for any batch size."""
    torch._dynamo.reset()
    counters.clear()
    graphs, honest_write = [], MetricWriter.write
    monkeypatch.setattr(
        MetricWriter, "write", lambda *args: graphs.append(counters["stats"]["unique_graphs"]) or honest_write(*args)
    )
    tiny = [*SWITCHES[switch], "model.dropout=0.1", "training.snapshot_freq=2", "training.eval_freq=2"]
    tiny += ["training.grad_accum_steps=3", "eval.batch_size=20"]  # batches of 2, 3, 3 and of 20
    for run, steps in (("stopped", 2), ("stopped", 4), ("whole", 4)):
        train(tiny_config(*tiny, f"training.n_iters={steps}"), tmp_path / run, CPU)
    assert_same(*(read(tmp_path / run / "checkpoints-meta/checkpoint.pth") for run in ("stopped", "whole")))
    of_whole = graphs[4:]  # at steps 1, 2, 3, 4
    assert len(of_whole) == 4 and of_whole[2] == of_whole[3]
    assert (of_whole[3] > 0) == ("compile" in switch)


class Waits(TorchDispatchMode):
    """Counts the operations that wait for a GPU, because their result or its size is needed on the host."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in func.__name__ for name in self.NAMES)
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(heat_kernel, "score", lambda x, x0, sigma: x0 - x)  # a CPU chooses rows by their sigma
    counts = []
    for steps in (2, 7):
        freqs = [f"training.{key}=1000" for key in ("log_freq", "eval_freq", "snapshot_freq")]
        with Waits() as waits:
            train(tiny_config(f"training.n_iters={steps}", *freqs), tmp_path / str(steps), CPU)
        counts.append(waits.count)
        assert len(metrics(tmp_path / str(steps))) == 1
    assert counts[0] == counts[1] > 0  # those of the start and of the end


def test_a_missing_compiler_is_one_line(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    result = script("run_train.py", *TINY, "compile=true")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("compile=True, but torch cannot compile here: ")
    assert not (tmp_path / "runs").exists()

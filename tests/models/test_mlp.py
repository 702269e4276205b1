"""The network for vectors, and the condition that a network is told."""

import pytest
import torch
from torch import nn

from evaluation import log_likelihood
from evaluation.likelihood import _score_and_trace
from losses import score_matching_loss
from models import create_model, null_like, recompute_activations
from models.layers import LayerNorm, condition_features
from sampling import guided_score
from sampling.folding import folded_score
from sde import ReflectedVE, heat_kernel
from tests.targets import FinitePoints
from training.loop import drop_labels
from utils.errors import InputError

SDE = {"name": "reflected_ve", "sigma_min": 0.01, "sigma_max": 5.0}
PROCESS = ReflectedVE(0.01, 5.0)
# Each is the kernel of width 0.05 around four points, whose score at sigma is that of the points at a larger noise.
WIDTH = 0.05
PLANE = FinitePoints(torch.tensor([[0.1, 0.1], [0.9, 0.2], [0.3, 0.8], [1.0, 1.0]]), torch.full((4,), 0.25))
CUBE = FinitePoints((1.4 * torch.rand(4, 8, generator=torch.Generator().manual_seed(0)) - 0.2).clamp(0, 1),
                    torch.full((4,), 0.25))  # fmt: skip


def network(shape=(2,), std=0.0, data=None, **model):
    torch.manual_seed(0)
    model = {"name": "mlp", "parametrization": "kernel_width", "width": 64, "num_blocks": 2} | model
    net = create_model(model, {"shape": list(shape), "classes": False, "num_classes": 1} | (data or {}), SDE)
    for p in net.parameters() if std else ():
        nn.init.normal_(p, std=std)
    return net


def learn(net, draw, steps, batch=256, lr=3e-3):
    """Train on batches (x0, labels) from ``draw``, with a learning rate that falls to zero."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    for _ in range(steps):
        x0, labels = draw(batch, generator)
        loss = score_matching_loss(
            net.train(), PROCESS, x0, labels, reduce_mean=True, stratified=True, generator=generator
        )
        optimizer.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net.eval()


@pytest.mark.slow(20)
@pytest.mark.parametrize(("target", "largest"), [(PLANE, 0.08), (CUBE, 0.08)])
def test_it_learns_the_score_of_a_known_density(target, largest):
    dimension = target.points.shape[1]
    net = learn(network((dimension,)), lambda n, g: (target.sample(n, WIDTH, g), None), 600)
    generator = torch.Generator().manual_seed(1)
    for sigma in (0.03, 0.1, 0.3):
        at = torch.full((2000,), sigma)
        x = heat_kernel.sample(target.sample(2000, WIDTH, generator), at[:, None], generator)
        exact = target.score(x, torch.hypot(at, torch.tensor(WIDTH))[:, None, None])
        with torch.no_grad():
            error = (net(x, at) - exact).square().mean() / exact.square().mean()
        print(f"{dimension}-D, sigma {sigma}: relative squared error of the score {error:.4f}")
        assert error < largest
    if dimension == 2:
        points = target.sample(100, WIDTH, generator)
        likelihood = log_likelihood(net, PROCESS, points, "exact").log_prob
        expected = target.log_density(points, torch.hypot(torch.tensor(0.01), torch.tensor(WIDTH)))
        print(f"log-density: lower by {(expected - likelihood).mean():.3f} nats on average")
        assert (likelihood - expected).mean().abs() < 0.25


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 4, 4)])
def test_outputs_of_a_value_follow_one_another_along_the_first_axis(shape):
    net = network(shape, std=0.2)
    x, sigma = torch.rand(3, *shape), torch.tensor([0.05, 0.5, 2.0])
    raw = net.network(x, sigma, None)
    assert raw.shape == (3, 2 * shape[0], *shape[1:]) and net(x, sigma).shape == x.shape
    flat = network((x[0].numel(),), std=0.2)  # the same weights
    for ours, other in zip(raw.chunk(2, 1), flat.network(x.flatten(1), sigma, None).chunk(2, 1), strict=True):
        assert torch.equal(ours.flatten(1), other)
    assert torch.equal(net(x, sigma).flatten(1), flat(x.flatten(1), sigma))


def test_a_fresh_network_starts_at_zero_and_has_no_order_of_coordinates():
    net = network((4,))
    x, sigma = torch.rand(3, 4), torch.tensor([0.05, 0.5, 2.0])
    assert torch.equal(net.network(x, sigma, None), torch.zeros(3, 8))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(net(x[:, order], sigma), net(x, sigma)[:, order])


def test_the_trace_is_that_of_the_jacobian():
    net = network((3,), std=0.2, dropout=0.5).eval()
    y, sigma = 3 * torch.rand(2, 3) - 1, torch.full((2,), 0.3)
    score, trace = _score_and_trace(PROCESS, net, y, sigma, torch.eye(3).reshape(3, 1, 3))
    jacobians = [
        torch.autograd.functional.jacobian(lambda y: folded_score(PROCESS, net, y[None], sigma[:1])[0], row)
        for row in y
    ]  # fmt: skip
    torch.testing.assert_close(score, folded_score(PROCESS, net, y, sigma).detach())
    torch.testing.assert_close(trace, torch.stack([j.trace() for j in jacobians]), rtol=1e-3, atol=1e-3)
    assert trace.abs().min() > 1e-3


def test_double_half_and_compiled_agree_and_recomputing_gives_the_gradient():
    net = network((3,), std=0.1, data={"cond_size": 2}).eval()
    x, sigma, cond = torch.rand(4, 3), torch.tensor([0.02, 0.1, 0.5, 2.0]), torch.randn(4, 2)
    score, dtypes = net(x, sigma, cond), {}
    for name, module in net.named_modules():
        if isinstance(module, LayerNorm | nn.Linear):
            module.register_forward_hook(lambda _, __, out, name=name: dtypes.update({name: out.dtype}))
    half = net.set_precision("bf16")(x, sigma, cond)
    assert half.dtype == torch.float32 and 1e-6 < (half - score).norm() / score.norm() < 0.05
    full = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert full == {name for name in dtypes if "norm" in name or "embed" in name} != set(dtypes)
    torch._dynamo.reset()
    net.set_precision("fp32")
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(x, sigma, cond)
    torch.testing.assert_close(compiled, score, rtol=1e-4, atol=1e-4)

    score.sum().backward()
    kept = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    recompute_activations(net)
    net(x, sigma, cond).sum().backward()
    assert all(map(torch.equal, kept, (p.grad for p in net.parameters())))
    double = net.double()(x.double(), sigma.double(), cond)
    torch.testing.assert_close(score.double(), double, rtol=1e-4, atol=1e-4)


CLASSES, COND = {"classes": True, "num_classes": 3}, {"cond_size": 2}
NETWORKS = {"mlp": {}, "adm": {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}}


def told(name, data, **options):
    """A network with random weights that is told something, for data (1, 4)."""
    torch.manual_seed(0)
    net = create_model({"name": name, **NETWORKS[name], **options}, {"shape": [1, 4], "classes": False} | data, SDE)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_no_class_and_no_condition_are_the_null_ones(name):
    x, sigma = torch.rand(3, 1, 4), torch.full((3,), 0.5)
    for data, null, real in (
        (CLASSES, torch.tensor([-1, -1, -1]), torch.tensor([0, 0, 0])),
        (COND, torch.full((3, 2), torch.nan), torch.zeros(3, 2)),
    ):
        net = told(name, data)
        assert net.takes_labels and (net.num_classes, net.cond_size) == (data.get("num_classes", 0), len(null[0:1].T)
                                                                           if "cond_size" in data else 0)  # fmt: skip
        none = net(x, sigma)
        assert none.isfinite().all() and torch.equal(net(x, sigma, null), none)
        assert torch.equal(net(x, sigma, null_like(real)), none)
        assert (net(x, sigma, real) - none).abs().min() > 1e-4, "a class or condition of zeros is not none"
        mixed = net(x, sigma, torch.stack([null[0], real[0], null[0]]))
        assert torch.allclose(mixed, torch.stack([none[0], net(x, sigma, real)[1], none[2]]), atol=1e-5)


def test_networks_without_a_condition_refuse_one():
    net = told("mlp", {})
    assert net.cond_size == 0 and not net.takes_labels
    with pytest.raises(InputError, match="no classes"):
        net(torch.rand(2, 1, 4), torch.ones(2), torch.zeros(2, 3))


def test_a_condition_is_encoded_with_what_is_not_known():
    features = condition_features(torch.tensor([[2.0, -3.0], [torch.nan, 1.0]]))
    assert features.tolist() == [[2.0, -3.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]


def test_guidance_is_away_from_the_null_condition():
    net = told("mlp", COND)
    x, sigma, cond = torch.rand(3, 1, 4), torch.full((3,), 0.5), torch.randn(3, 2)
    guided = guided_score(net, cond, 2.0)(x, sigma)
    torch.testing.assert_close(guided, 3 * net(x, sigma, cond) - 2 * net(x, sigma), rtol=1e-4, atol=1e-5)


def test_conditions_are_dropped_row_by_row():
    torch.manual_seed(0)
    cond = torch.rand(20_000, 3)
    dropped = drop_labels(cond, 0.2)
    rows = dropped.isnan().any(1)
    assert torch.equal(rows, dropped.isnan().all(1)) and torch.equal(dropped[~rows], cond[~rows])
    assert abs(rows.float().mean() - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5
    assert torch.equal(drop_labels(cond, 0.0), cond)


@pytest.mark.slow(10)
def test_it_learns_what_the_condition_says():
    """x has one value of 0.05 around the condition c: its score is the kernel's, and without c that of a mixture."""
    values = torch.tensor([[0.2], [0.8]])

    def draw(n, generator):
        c = torch.rand(n, 1, generator=generator)
        x0 = heat_kernel.sample(c, torch.tensor(WIDTH), generator)
        known = torch.rand(n, 1, generator=generator) < 0.8
        return x0, torch.where(known, c, torch.nan)

    net = learn(network((1,), data={"cond_size": 1}), draw, 500)
    for sigma in (0.05, 0.2):
        width = torch.hypot(torch.tensor(sigma), torch.tensor(WIDTH))
        for c in values:
            x = heat_kernel.sample(c.expand(500, 1), width, torch.Generator().manual_seed(1))
            exact = heat_kernel.score(x, c.expand(500, 1), width)
            with torch.no_grad():
                given, none = (net(x, torch.full((500,), sigma), cond) for cond in (c.expand(500, 1), None))
            assert (given - exact).square().mean() < 0.03 * exact.square().mean()
            assert (none * width).square().mean() < 0.03, "uniform without the condition"

import math

import pytest
import torch
from torch import nn

from losses import DiffusionSquared, SigmaSquared, score_matching_loss
from losses.noise_levels import T_MIN
from sde import ReflectedVE, heat_kernel

SDE = ReflectedVE(0.01, 5.0)


class TinyNet(nn.Module):
    """A smooth network with few weights, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x, sigma, labels=None):
        shift = 0 if labels is None else labels[:, None]
        return (torch.tanh(self.layer(x.flatten(1))) + shift).reshape(x.shape) / sigma.reshape(-1, 1, 1, 1)


def loss_of(net, seed=0, **options):
    x0 = torch.rand(64, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return score_matching_loss(net, SDE, x0, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("weighting", [SigmaSquared(), DiffusionSquared(SDE)], ids=["sigma^2", "g^2"])
@pytest.mark.parametrize("reduce_mean", [False, True])
def test_gradient_against_finite_differences(weighting, reduce_mean):
    net = TinyNet()
    options = {"weighting": weighting, "reduce_mean": reduce_mean}
    loss_of(net, **options).mean().backward()
    for p in net.parameters():
        for i in range(p.numel()):
            h = 1e-6
            values = []
            for sign in (1, -1):
                p.data.view(-1)[i] += sign * h
                values.append(loss_of(net, **options).mean().item())
                p.data.view(-1)[i] -= sign * h
            assert (values[0] - values[1]) / (2 * h) == pytest.approx(p.grad.view(-1)[i].item(), rel=1e-6, abs=1e-8)


def test_weightings_and_reductions_by_hand():
    """With the times and noise of the same generator, each image's loss is what the formula says."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(64, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = T_MIN + (1 - T_MIN) * torch.rand(64, dtype=torch.float64, generator=generator)
    sigma = 0.01 * 500.0**t
    x = heat_kernel.sample(x0, sigma, generator)
    net = TinyNet()
    squared = (net(x, sigma) - heat_kernel.score(x, x0, sigma)).square().flatten(1)
    g2 = sigma.square() * 2 * math.log(500)
    for weighting, weight in ((SigmaSquared(), sigma.square()), (DiffusionSquared(SDE), g2)):
        for mean, reduced in ((False, 0.5 * squared.sum(1)), (True, squared.mean(1))):
            loss = loss_of(net, weighting=weighting, reduce_mean=mean)
            assert loss.shape == (64,)
            assert torch.allclose(loss, weight * reduced, rtol=1e-12)


def test_exact_conditional_score_has_zero_loss_and_labels_arrive():
    x0 = torch.full((8, 1, 2, 2), 0.25)
    generator = torch.Generator().manual_seed(0)

    def exact(x, sigma, labels):
        assert labels.tolist() == list(range(8))
        return heat_kernel.score(x, x0, sigma)

    assert score_matching_loss(exact, SDE, x0, torch.arange(8), generator=generator).abs().max() == 0

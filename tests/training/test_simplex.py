"""Training on the simplex: the loss of a small network comes near that of the exact score."""

import pytest
import torch
from torch import nn

from datasets.simplex import to_ordered
from losses import score_matching_loss
from sde import ReflectedSimplex
from tests.simplex_targets import DirichletMixture

SDE = ReflectedSimplex(0.1, 2.0)


class MLP(nn.Module):
    """Two hidden layers; its output is divided by sigma."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, sigma, labels=None):
        level = sigma[:, None].log()
        return self.layers(torch.cat([2 * x - 1, level, level.cos(), level.sin()], 1)) / sigma[:, None]


@pytest.mark.slow(12)
def test_a_network_learns_the_score_of_the_ordered_process():
    target, generator = DirichletMixture(3, {1: 1.0}), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = MLP()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 700)
    for _ in range(700):
        x0 = to_ordered(target.sample_parts(1024, generator)).float()
        optimizer.zero_grad()
        score_matching_loss(net, SDE, x0, stratified=True).mean().backward()
        optimizer.step()
        scheduler.step()

    # x and the errors of the score at it, in units of 1 / sigma
    x0, t = to_ordered(target.sample_parts(20_000, generator)).float(), torch.rand(20_000, generator=generator)
    sigma = SDE.sigma(t)
    x = SDE.sample(x0, t, generator)
    exact = target.score(x, sigma)
    with torch.no_grad():
        size, error = ((sigma[:, None] * v).square().mean().item() for v in (exact, net(x, sigma) - exact))

    def loss_of(score):
        again = torch.Generator().manual_seed(1)
        with torch.no_grad():
            return score_matching_loss(lambda x, sigma, _: score(x, sigma), SDE, x0, generator=again).mean().item()

    nothing, best, learned = loss_of(lambda x, sigma: 0 * x), loss_of(target.score), loss_of(net)
    print(f"score {size:.4f}, error {error:.4f}; losses: zero {nothing:.4f}, exact {best:.4f}, learned {learned:.4f}")
    assert error < 0.2 * size
    assert best < learned < best + 0.2 * (nothing - best)

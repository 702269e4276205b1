"""Learn a density in the square and draw from it: python -m examples.density_2d, some minute on two CPU cores."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from losses import score_matching_loss
from sampling import PredictorCorrector
from sampling.images import save_grid
from sde import ReflectedVE, cube


def spirals(n: int) -> torch.Tensor:  # the data, (n, 2): two arms, reflected where they meet the faces
    r, arm = torch.rand(n).sqrt(), torch.randint(2, (n,)) * torch.pi
    x = 0.5 + 0.65 * r * torch.stack([torch.cos(9 * r + arm), torch.sin(9 * r + arm)]) + 0.03 * torch.randn(2, n)
    return cube.reflect(x).T


def histogram(x: torch.Tensor) -> np.ndarray:  # a picture of where points are, uint8 (96, 96, 1)
    counts = torch.histogramdd(x.flip(1), [96, 96], range=[0.0, 1.0, 0.0, 1.0]).hist
    return (255 * counts / counts.quantile(0.995)).clamp(max=255).byte().numpy()[..., None]


layers = nn.Sequential(nn.Linear(49, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 2))


def score(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    # Any callable will do: points (B, 2) and noise levels (B,) to scores (B, 2).
    waves = torch.cos(torch.pi * x[..., None] * torch.arange(1, 25)).flatten(1)
    return layers(torch.cat([waves, sigma.log()[:, None]], 1)) / sigma[:, None]


sde = ReflectedVE(sigma_min=0.01, sigma_max=5.0)
optimizer = torch.optim.Adam(layers.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=4000)
for _ in range(4000):
    optimizer.zero_grad()
    score_matching_loss(score, sde, spirals(1024)).mean().backward()
    optimizer.step()
    schedule.step()

data, start = spirals(200_000), sde.prior_sample((200_000, 2))
drawn = PredictorCorrector(sde, steps=40, predictor="ancestral")(score, start).samples
save_grid(np.stack([histogram(data), histogram(drawn)]), Path("docs/density_2d.png"), columns=2)

"""A process in a single file, as docs/contributing.md says: trained, resumed, loaded, sampled, evaluated."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import Field
from torch.distributions import Normal

import sde
from evaluation import elbo, log_likelihood
from models import load_pretrained
from sampling import Heun, PredictorCorrector, ProbabilityFlow
from sde import ElementwiseProcess, create_process
from tests.extending.conftest import ADM, DIGITS
from utils.seeds import BatchGenerator

WINDINGS = torch.arange(-8.0, 9.0)


@dataclass(frozen=True)
class WrappedVE(ElementwiseProcess):
    """Brownian motion on the torus: x_t = x0 + sigma(t) z modulo 1, with the wrapped normal density."""

    bounded: ClassVar[bool] = True
    prior_name: ClassVar[str] = "uniform"

    sigma_min: float = 0.01
    sigma_max: Annotated[float, Field(gt=0, le=8)] = 1.5

    @property
    def prior_sigma(self):
        return self.sigma_max

    def project(self, y):
        return torch.remainder(y, 1.0)

    def sample(self, x0, t, generator=None):
        return self.project(x0 + self._sigma_of(t, x0) * BatchGenerator(generator).randn_like(x0))

    def log_density(self, x, x0, t):
        sigma = self._sigma_of(t, x)[..., None]
        return Normal(x0[..., None] + WINDINGS.to(x), sigma).log_prob(x[..., None]).logsumexp(-1)

    def conditional_score(self, x, x0, t):
        sigma = self._sigma_of(t, x)[..., None]
        pulls = x0[..., None] + WINDINGS.to(x) - x[..., None]
        return ((-0.5 * (pulls / sigma).square()).softmax(-1) * pulls).sum(-1) / sigma[..., 0].square()

    def expected_log_density(self, x0, t):
        z = torch.linspace(-6, 6, 97, dtype=x0.dtype)
        sigma = self.sigma(torch.tensor(t, dtype=x0.dtype))
        values = self.log_density(self.project(sigma * z)[:, None], torch.zeros(97, 1, dtype=x0.dtype), t)[:, 0]
        weights = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) * (z[1] - z[0])
        return torch.full_like(x0, (weights * values).sum().item())

    def kl_to_prior(self, x0):
        return self.expected_log_density(x0, 1.0)

    def prior_sample(self, shape, generator=None, device="cpu", dtype=torch.float32):
        return BatchGenerator(generator).rand(shape, device, dtype)

    def prior_log_prob(self, x):
        return x.new_zeros(len(x))


ENTRIES = [(sde.PROCESSES, "wrapped", WrappedVE)]
CONFIGS = [("sde/wrapped.yaml", None, """\
# Brownian motion on the torus
defaults:
  - /base/sde@_here_
  - _self_

name: wrapped
sigma_max: 1.5  # noise at t = 1: uniform
num_scales: 50
""")]  # fmt: skip
CHOSEN = [*DIGITS, *ADM, "sde=wrapped"]


def test_a_process_in_one_file(extended):
    run = extended.train_and_resume(*CHOSEN)
    _, cfg = load_pretrained(run)
    assert create_process(cfg.sde) == WrappedVE(0.01, 1.5, 50)
    assert extended.draw("label=[3,4]").shape == (6, 8, 8, 1)
    results = extended.measure()
    assert "uniform at sigma_max=1.5" in results["bpd"]["density"]


def test_its_options_are_checked(extended, monkeypatch):
    train = ("run_train.py", *CHOSEN, "hydra.run.dir=RUN", "training.snapshot_sampling=false", "training.n_iters=2")
    assert extended.refuse(*train, "sde.sigma_mx=1") == "sde.sigma_mx: no such option; did you mean sde.sigma_max?"
    too_large = "sde.sigma_max=9.0: need a number, more than 0, at most 8"
    assert extended.refuse(*train, "sde.sigma_max=9.0") == too_large
    known = "known are reflected_simplex, reflected_ve, ve, wrapped; did you mean wrapped?"
    assert extended.refuse(*train, "sde=wraped").endswith(known)
    extended.succeed(*train)
    assert "sde.name=reflected_ve, but the run in" in extended.refuse(*train, "sde=reflected_ve", "sde.sigma_max=1.5")
    extended.edit("sigma_max: 1.5", "sigma_max: 9.0")
    assert too_large in extended.refuse("run_vis.py", "load_dir=RUN")
    assert too_large in extended.refuse("run_train.py", "resume=RUN")
    extended.check_options(monkeypatch, "train", "sde=NAME, one of reflected_simplex, reflected_ve, ve, wrapped")


def test_samplers_and_likelihoods_are_exact_for_points():
    """Two points on the torus, one beside the seam."""
    process, points = WrappedVE(0.05, 1.5), torch.tensor([[0.01, 0.5], [0.5, 0.2]], dtype=torch.float64)

    def logs(x, t):
        return process.log_density(x[:, None], points[None], t).sum(-1) + math.log(0.5)

    def score_fn(x, sigma):
        t = process.time(sigma)
        assert x.min() >= 0 and x.max() <= 1, "evaluated outside the domain"
        scores = process.conditional_score(x[:, None], points.to(x)[None], t)
        return (logs(x.double(), t.double()).softmax(1).to(x)[..., None] * scores).sum(1)

    x_init = process.prior_sample((4000, 2), torch.Generator().manual_seed(0))
    for sampler in (PredictorCorrector(process, steps=200), ProbabilityFlow(process, 1e-4, 1e-4), Heun(process)):
        x = sampler(score_fn, x_init, torch.Generator().manual_seed(1)).samples
        offset = (x[:, None] - points.to(x) + 0.5).remainder(1.0) - 0.5
        nearest = offset.square().sum(-1).argmin(1)
        assert nearest.double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
        left = offset[torch.arange(4000), nearest].square().mean().sqrt()
        assert left.item() == pytest.approx(0.05, rel=0.1)

    x = process.sample(points.repeat(10, 1), torch.zeros(20), torch.Generator().manual_seed(2))
    zeros = torch.zeros(20, dtype=torch.float64)
    exact = logs(x, zeros).logsumexp(1)
    out = log_likelihood(score_fn, process, x, "exact")
    assert (out.log_prob - exact).abs().max() < 1e-3 and exact.std() > 0.3

    uniform = elbo(lambda x, sigma: torch.zeros_like(x), process, torch.rand(4000, 2), None, num_times=10)
    error = uniform.log_prob.std().item() / 4000**0.5
    assert error < 0.1 and uniform.log_prob.mean().item() == pytest.approx(0.0, abs=4 * error)

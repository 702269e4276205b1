"""A noise-level sampler and a weighting in a single file, as docs/contributing.md says, trained, resumed and drawn."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor

from losses.noise_levels import NOISE_LEVELS, ByQuantile, create_noise_levels
from losses.weighting import WEIGHTINGS, Weighting, create_weighting
from models.io.config import load_config
from sde import Process, create_process
from tests.conftest import composed, metrics, tiny_config
from tests.extending.conftest import ADM, DIGITS
from training.loop import Loss
from training.options import check_train
from utils.errors import InputError
from utils.options import Positive


@dataclass(frozen=True)
class UniformBelowPrior(ByQuantile):
    """Times uniform up to where the process reaches its prior, or a share of that: above, nothing is left to learn."""

    process: Process
    share_of_prior: Annotated[float, Field(gt=0, le=1)] = 1.0

    def quantile(self, u: Tensor) -> tuple[Tensor, Tensor]:
        top = self.process.time(torch.tensor(self.share_of_prior * self.process.prior_sigma)).item()
        return top * u, torch.full_like(u, 1.0 / top)


@dataclass(frozen=True)
class CappedSigmaSquared(Weighting):
    """The weight min(sigma, cap)^2: large noise levels count less."""

    sigma_cap: Positive = 1.0

    def weight(self, sigma: Tensor) -> Tensor:
        return sigma.clamp(max=self.sigma_cap).square()


ENTRIES = [(NOISE_LEVELS, "below_prior", UniformBelowPrior), (WEIGHTINGS, "capped", CappedSigmaSquared)]
CONFIGS = [
    ("train.yaml", "  log_sigma_std:", "  share_of_prior: 1.0  # of below_prior: largest noise over the prior's"),
    ("train.yaml", "  weighting:", "  sigma_cap: 1.0  # of weighting=capped: its largest noise level"),
]  # fmt: skip
CHOSEN = [*DIGITS, *ADM, "training.noise_levels=below_prior", "training.weighting=capped"]


def test_noise_levels_and_a_weighting_in_one_file(extended):
    run = extended.train_and_resume(*CHOSEN, "training.batch_size=100", "training.share_of_prior=0.5")
    cfg = load_config(run)
    assert (cfg.training.noise_levels, cfg.training.share_of_prior, cfg.training.sigma_cap) == ("below_prior", 0.5, 1.0)
    process = create_process(cfg.sde)
    loss = Loss(cfg, process)
    assert loss.noise_levels == UniformBelowPrior(process, 0.5) and loss.weighting == CappedSigmaSquared(1.0)
    quarters = np.array([entry["loss_by_sigma"] for entry in metrics(run)], float)
    assert quarters.shape == (4, 4) and np.isfinite(quarters).all(), "each quartile has some of the hundred images"
    assert extended.draw().shape == (6, 8, 8, 1)
    extended.measure()


def test_they_are_what_the_loss_draws_and_weighs_by(registered):
    chosen = {"noise_levels": "below_prior", "share_of_prior": 0.5}
    process = create_process(tiny_config().sde)
    t, density = create_noise_levels(chosen, process).draw(1000, torch.Generator().manual_seed(0))
    top = np.log(0.5 * process.prior_sigma / 0.01) / np.log(500)
    assert 0.99 * top < t.max() < top and t.mean().item() == pytest.approx(top / 2, rel=0.1)
    assert density.unique().item() == pytest.approx(1 / top)
    weighting = create_weighting({"weighting": "capped", "sigma_cap": 2.0, "likelihood_weighting": False}, process)
    assert weighting.weight(torch.tensor([1.0, 2.0, 4.0])).tolist() == [1, 4, 4]


def test_their_options_are_checked(extended, monkeypatch):
    train = ("run_train.py", *CHOSEN, "hydra.run.dir=RUN", "training.snapshot_sampling=false", "training.n_iters=2")
    for wrong, message in [
        ("training.share_of_prio=1", ": no such option; did you mean training.share_of_prior?"),
        ("training.share_of_prior=0", "=0: need a number, more than 0, at most 1"),
        ("training.sigma_cap=0", "=0: need a number, more than 0"),
        (
            "training.noise_levels=below",
            "=below: known are uniform, capped, log_normal, loss_adaptive, below_prior; did you mean below_prior?",
        ),
        (
            "training.weighting=caped",
            "=caped: known are sigma_squared, diffusion_squared, log_variance, capped, null; did",
        ),
    ]:
        assert wrong.split("=")[0] + message in extended.refuse(*train, wrong)
    both = extended.refuse(*train, "training.likelihood_weighting=true")
    assert both.endswith("training.likelihood_weighting=True, that is g^2: choose one")
    extended.succeed(*train)
    extended.edit("share_of_prior: 1.0", "share_of_prior: 0")
    assert "training.share_of_prior=0: need" in extended.refuse("run_train.py", "resume=RUN")
    extended.check_options(monkeypatch, "train", "training.sigma_cap=1.0  of weighting=capped", "below_prior")


def test_without_the_entries_the_names_are_refused():
    for wrong in ("noise_levels=below_prior", "weighting=capped"):
        with pytest.raises(InputError, match=rf"training\.{wrong}: known are"):
            check_train(tiny_config(f"training.{wrong}"), 1)
    assert composed().training.weighting is None

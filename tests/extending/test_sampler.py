"""A sampler in a single file, as docs/contributing.md says: on an exact score, in snapshots, in run_vis.py."""

import itertools
import json
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import Field

import sampling
from models.io.config import load_config
from sampling import create_sampler
from sampling.base import Samples, StepRecorder, TrajectoryLength
from sampling.folding import folded_score
from sde import VE, Process, ReflectedVE
from tests.conftest import ROOT, composed
from tests.extending.conftest import ADM, DIGITS
from tests.targets import FIVE_POINTS, GaussianMixture
from utils.options import Count


@dataclass(frozen=True)
class Euler:
    """Euler's method in sigma on the probability flow (DDIM), for any process."""

    process: Process
    steps: Count | None = None
    rho: Annotated[float, Field(ge=1, le=20)] = 7.0
    trajectory: TrajectoryLength = 0

    @property
    def num_steps(self):
        return self.steps or 40

    @torch.no_grad()
    def __call__(self, score_fn, x_init, generator=None, on_step=None):
        y, recorder = x_init, StepRecorder(self.num_steps, self.trajectory, x_init, on_step)
        ends = [level ** (1 / self.rho) for level in (self.process.prior_sigma, self.process.sigma_min)]
        sigmas = torch.linspace(*ends, self.num_steps + 1, dtype=torch.float64).pow(self.rho).tolist()
        for i, (sigma, following) in enumerate(itertools.pairwise(sigmas), start=1):
            slope = -sigma * folded_score(self.process, score_fn, y, y.new_full((len(y),), sigma))
            y = y + (following - sigma) * slope
            recorder.record(i, self.process.project(y))
        return Samples(self.process.project(y), self.num_steps, recorder.trajectory)


ENTRIES = [(sampling.METHODS, "euler", Euler)]
CONFIGS = [("sampling/default.yaml", "side_eps:", """\
# euler
rho: 7.0  # exponent of the noise levels, as in EDM
""")]  # fmt: skip


@pytest.mark.parametrize(
    ("process", "target"),
    [
        (ReflectedVE(0.01, 5.0), FIVE_POINTS),
        (VE(0.01, 50.0), GaussianMixture(FIVE_POINTS.points, FIVE_POINTS.weights)),
    ],
    ids=["reflected", "plain"],
)
def test_it_draws_from_an_exact_score(registered, process, target):
    cfg = composed("load_dir=x", "sampling.steps=60", name="vis").sampling
    cfg.method = "euler"
    x_init = process.prior_sample((4000, 2), torch.Generator().manual_seed(0))
    out = create_sampler(cfg, process)(target.score, x_init)
    assert FIVE_POINTS.standard_errors(out.samples).abs().max() < 4
    assert FIVE_POINTS.rms_distance(out.samples) == pytest.approx(0.01, rel=0.25) and out.nfe == 60


def test_a_sampler_in_one_file(extended):
    run = extended.train_and_resume(*DIGITS, *ADM, "sampling.method=euler", "sampling.trajectory=3")
    assert (run / "samples/iter_2/trajectory.gif").is_file() and load_config(run).sampling.rho == 7
    euler = ["sampling.method=euler", "sampling.steps=3", "w=1", "label=[3,4]"]
    samples = extended.draw(*euler)
    assert samples.shape == (6, 8, 8, 1) and not np.array_equal(samples, extended.draw(*euler, "sampling.rho=3"))
    assert np.array_equal(samples, extended.draw(*euler, "eval.batch_size=3", "eval.rounds=2", batches=2))
    fid = ["metrics=[fid]", "metrics.num_images=20", "eval.batch_size=10", "device=cpu", "load_dir=RUN"]
    extended.succeed("run_eval.py", *fid, *euler[:2], "hydra.run.dir=measured")
    results = json.loads((extended.folder / "measured/results.json").read_text())
    assert results["drawn_images"]["sampling"]["method"] == "euler" and results["metrics"]["fid"]["value"] > 0


def test_its_options_are_checked(extended, monkeypatch):
    train = ("run_train.py", *DIGITS, *ADM, "sampling.method=euler", "hydra.run.dir=RUN", "training.n_iters=2")
    for wrong, message in [
        ("sampling.roh=3", "sampling.roh: no such option; did you mean sampling.rho?"),
        ("sampling.rho=0", "sampling.rho=0: need a number, at least 1, at most 20"),
        ("sampling.method=eular", "sampling.method=eular: known are pc, ode, heun, multistep, unipc, euler, auto; did you mean euler?"),  # noqa: E501
    ]:  # fmt: skip
        assert extended.refuse(*train, wrong) == message
        assert extended.refuse("run_vis.py", f"load_dir={ROOT}/tests/golden/earlier_run/run", wrong) == message
    extended.succeed(*train)
    extended.edit("rho: 7.0", "rho: 0")
    assert "sampling.rho=0: need" in extended.refuse("run_train.py", "resume=RUN")
    extended.check_options(
        monkeypatch, "vis", "sampling.rho=7.0  exponent of the noise levels, as in EDM (a number, at"
    )

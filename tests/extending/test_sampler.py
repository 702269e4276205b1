"""A sampler in a single file, as docs/contributing.md says: on an exact score, in snapshots, in run_vis.py."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import sampling
from evaluation.generate import ImageSampler, generate_batches
from sampling import create_sampler
from sampling.base import Samples, StepRecorder, TrajectoryLength
from sampling.folding import folded_score, karras_sigmas
from sde import VE, Process, ReflectedVE
from tests.conftest import composed, tiny_config
from tests.targets import FIVE_POINTS, GaussianMixture
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError
from utils.options import Count

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Euler:
    """Euler's method in sigma on the probability flow (DDIM), for any process."""

    process: Process
    steps: Count | None = None
    trajectory: TrajectoryLength = 0

    @property
    def num_steps(self):
        return self.steps or 40

    @torch.no_grad()
    def __call__(self, score_fn, x_init, generator=None, on_step=None):
        y, recorder = x_init, StepRecorder(self.num_steps, self.trajectory, x_init, on_step)
        sigmas = karras_sigmas(self.process, self.num_steps)
        for i, (sigma, following) in enumerate(itertools.pairwise(sigmas), start=1):
            slope = -sigma * folded_score(self.process, score_fn, y, y.new_full((len(y),), sigma))
            y = y + (following - sigma) * slope
            recorder.record(i, self.process.project(y))
        return Samples(self.process.project(y), self.num_steps, recorder.trajectory)


@pytest.fixture
def registered(monkeypatch):
    """The entry in ``sampling/__init__.py``."""
    monkeypatch.setitem(sampling.METHODS, "euler", Euler)


@pytest.mark.parametrize(
    ("process", "target"),
    [
        (ReflectedVE(0.01, 5.0), FIVE_POINTS),
        (VE(0.01, 50.0), GaussianMixture(FIVE_POINTS.points, FIVE_POINTS.weights)),
    ],
    ids=["reflected", "plain"],
)
def test_it_draws_from_an_exact_score(registered, process, target):
    cfg = composed("load_dir=x", "sampling.method=euler", "sampling.steps=60", name="vis").sampling
    x_init = process.prior_sample((4000, 2), torch.Generator().manual_seed(0))
    out = create_sampler(cfg, process)(target.score, x_init)
    assert FIVE_POINTS.standard_errors(out.samples).abs().max() < 4
    assert FIVE_POINTS.dequantize(out.samples) == pytest.approx(0.01, rel=0.25) and out.nfe == 60


def test_a_sampler_in_one_file(registered, tmp_path):
    train(tiny_config("sampling.method=euler", "sampling.trajectory=3"), tmp_path, Distributed(CPU))
    assert np.load(tmp_path / "samples/iter_2/sample_0.npy").shape == (20, 8, 8, 1)
    assert (tmp_path / "samples/iter_2/trajectory.gif").is_file()
    draw = ["sampling.method=euler", "sampling.steps=3", "w=1", "label=[3,4]", "device=cpu", f"load_dir={tmp_path}"]
    sampler = ImageSampler(composed(*draw, name="vis"), CPU)
    batches = dict(generate_batches(sampler, [0, 1], 4, Distributed(CPU)))
    assert batches[0].nfe == 3 and batches[0].labels.tolist() == [3, 4, 3, 4]
    assert not np.array_equal(batches[0].pixels, batches[1].pixels)
    assert np.array_equal(sampler(range(4, 8)).pixels, batches[1].pixels)


def test_its_options_are_checked(registered):
    cfg = composed("load_dir=x", "sampling.method=euler", "sampling.steps=0", name="vis").sampling
    with pytest.raises(InputError, match=r"sampling\.steps=0: need an integer, at least 1, at most 1e\+09, or null"):
        create_sampler(cfg, ReflectedVE())

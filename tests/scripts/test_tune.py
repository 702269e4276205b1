"""python -m sampling.tune RUN, and the scripts with sampling.method=auto."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml

from datasets import ImageDataset
from sampling import tune
from sampling.folding import karras_sigmas
from sde import VE, ReflectedVE
from tests.conftest import TINY
from tests.targets import FIVE_POINTS, GaussianMixture

SDE = ReflectedVE(0.01, 5.0)
DRAW = ["load_dir=RUN", "device=cpu", "eval.batch_size=6", "sampling.method=auto", "sampling.nfe=3"]


@pytest.fixture(scope="module")
def place(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    result = scripts(folder, "run_train.py", *TINY, "hydra.run.dir=RUN")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def command(place, monkeypatch, capsys):
    """Run the module in this process, in the folder of the run; returns the exit status and what it printed."""

    def run(*arguments):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["sampling.tune", *arguments])
        try:
            tune.main()
            status = 0
        except SystemExit as ended:
            status = ended.code
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_levels_are_stored_with_the_run_and_used_by_auto(place, command, scripts):
    status, out, err = command("RUN", "--nfe", "2", "3", "--samples", "12", "--batch-size", "5")
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["2", "3"]
    path = place / "RUN/tuned/sampling.json"
    written = path.read_bytes()
    found = json.loads(written)["tuned"]["3"]
    assert (found["checkpoint"], found["samples"], found["seed"]) == ("checkpoint_1.pth", 12, 0)
    assert len(found["sigmas"]) == 3 and found["energy_distance"][0] <= found["default"][0]

    assert command("RUN", "--nfe", "3", "--samples", "12")[:2] == (0, "")  # done already
    assert path.read_bytes() == written
    status, out, _ = command("RUN", "--nfe", "2", "--samples", "12", "--seed", "1")
    again = json.loads(path.read_text())["tuned"]
    assert status == 0 and (again["2"]["seed"], again["3"]["seed"]) == (1, 0)
    path.write_bytes(written)

    result = scripts(place, "run_vis.py", *DRAW, "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    assert f"sampling.method=auto: {found['method']}, 3 steps" in result.stderr + result.stdout
    recorded = yaml.safe_load((place / "out/images/vis.yaml").read_text())["sampling"]
    assert (recorded["method"], recorded["sigmas"], recorded["eta"]) == (found["method"], found["sigmas"], found["eta"])
    given = f"sampling.sigmas={found['sigmas']}".replace(" ", "")
    options = [f"sampling.method={found['method']}", f"sampling.eta={found['eta']}", given]
    result = scripts(place, "run_vis.py", *DRAW[:3], *options, "hydra.run.dir=same")
    assert result.returncode == 0, result.stderr
    drawn = [np.load(place / name / "images/samples_0.npz")["samples"] for name in ("out", "same")]
    assert np.array_equal(*drawn)

    evaluated = scripts(
        place, "run_eval.py", *DRAW, "metrics=[energy_distance]", "metrics.num_images=6", "hydra.run.dir=measured"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    protocol = json.loads((place / "measured/results.json").read_text())["drawn_images"]
    assert protocol["sampling"]["sigmas"] == found["sigmas"] and protocol["evaluations"].startswith("3 ")

    path.write_text("{}")
    result = scripts(place, "run_vis.py", *DRAW, "hydra.run.dir=damaged")
    assert result.returncode == 1 and "tuned/sampling.json cannot be used" in result.stderr
    assert "Traceback" not in result.stderr
    path.unlink()
    assert scripts(place, "run_vis.py", *DRAW, "hydra.run.dir=default").returncode == 0
    assert yaml.safe_load((place / "default/images/vis.yaml").read_text())["sampling"]["sigmas"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere/checkpoints has no checkpoint_*.pth"),
        (["RUN", "--nfe", "1"], "--nfe 1: need at least 2"),
        (["RUN", "--samples", "3"], "--samples 3: need at least 10"),
        (["RUN", "--seed", "-1"], "--seed -1: need at least 0"),
        (["RUN", "--batch-size", "0"], "--batch-size 0: need at least 1"),
        (["RUN", "--ckpt", "9"], "has no checkpoint_9.pth: --ckpt can be "),
    ],
)
def test_bad_arguments(command, arguments, message):
    status, _, err = command(*arguments)
    assert status not in (0, None) and message in f"{status}{err}"


class Erratic:
    """The exact score of five points, with an error above one noise level, as in networks that were trained briefly."""

    data_shape, takes_labels = (2,), False

    def __call__(self, x, sigma, labels=None):
        wrong = 10.0 * (sigma > 0.9).to(x.dtype)[:, None]
        return FIVE_POINTS.score(x, sigma) + wrong * torch.tensor([1.0, -1.0])


def test_the_search_avoids_levels_at_which_the_score_is_wrong():
    chosen = torch.multinomial(FIVE_POINTS.weights, 600, replacement=True, generator=torch.Generator().manual_seed(0))
    images = ImageDataset(FIVE_POINTS.points[chosen], torch.zeros(600, dtype=torch.int64), num_classes=1, levels=None)
    counted = []
    search = tune.Search(Erratic(), SDE, images, batch_size=500)
    search.on_step = lambda: counted.append(1)
    found = tune.tune(search, 6, 200, "checkpoint_1.pth")
    assert len(counted) <= tune.most_steps(6)
    assert karras_sigmas(SDE, 6)[0] > 0.9
    assert found.energy_distance[0] < 0.02 < 0.05 < found.default[0]
    shares = FIVE_POINTS.shares(
        tune.create_few_steps(SDE, found.method, found.sigmas, found.eta)(
            Erratic(), torch.rand(4000, 2, generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
        ).samples
    )
    assert (shares - FIVE_POINTS.weights).abs().max() < 0.06


def test_a_process_without_bounds_starts_where_its_noise_does():
    target = GaussianMixture(torch.tensor([[0.2, 0.3], [0.8, 0.5]]), torch.tensor([0.5, 0.5]), 0.05)

    class Exact(Erratic):
        def __call__(self, x, sigma, labels=None):
            return target.score(x, sigma)

    images = ImageDataset(torch.rand(60, 2), torch.zeros(60, dtype=torch.int64), num_classes=1, levels=None)
    found = tune.tune(tune.Search(Exact(), VE(0.01, 50.0), images), 4, 20, "checkpoint_1.pth")
    assert found.sigmas[0] == 50.0


def test_the_default_is_kept_where_nothing_found_is_better(monkeypatch):
    images = ImageDataset(torch.rand(50, 2), torch.zeros(50, dtype=torch.int64), num_classes=1, levels=None)
    search = tune.Search(Erratic(), SDE, images)
    levels = tuple(karras_sigmas(SDE, 4)[:-1])
    monkeypatch.setattr(search, "distance", lambda candidate, _: (float(candidate.sigmas != levels), 0.1))
    found = tune.tune(search, 4, 20, "checkpoint_1.pth")
    assert (found.method, tuple(found.sigmas), found.eta) == ("multistep", levels, 0.0)


def test_samples_are_given_the_labels_of_the_data():
    seen = []

    class WithLabels(Erratic):
        takes_labels = True

        def __call__(self, x, sigma, labels=None):
            seen.append(labels)
            return 0.0 * x

    images = ImageDataset(torch.rand(3, 2), torch.tensor([4, 5, 6]), num_classes=7, levels=None)
    candidate = tune.Candidate("multistep", 0.0, (0.5,))
    tune.Search(WithLabels(), SDE, images, batch_size=4).distance(candidate, range(6))
    assert sorted(torch.cat(seen).tolist()) == [4, 4, 5, 5, 6, 6]

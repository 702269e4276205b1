"""A parametrization in a single file: trained, resumed, loaded, sampled, evaluated, exported."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from pydantic import Field
from torch import Tensor

from models import load_pretrained, parametrization
from models.export import export
from models.parametrization import Parametrization, expand
from tests.conftest import tiny_config
from tests.extending.conftest import ADM, DIGITS
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ZeroAtFaces(Parametrization):
    """A score that vanishes at the faces of the cube, as that of the reflected process: F (4x(1 - x))^power / sigma."""

    power: Annotated[float, Field(gt=0, le=4)] = 1.0

    def __call__(self, raw: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return raw * (4.0 * x * (1.0 - x)) ** self.power / expand(sigma, x)


ENTRIES = [(parametrization.PARAMETRIZATIONS, "faces", ZeroAtFaces)]
CONFIGS = [("base/model.yaml", "sigma_data:", """\
power: 1.0               # power of the factor that vanishes at the faces (parametrization=faces)
""")]  # fmt: skip
CHOSEN = [*DIGITS, *ADM, "model.parametrization=faces"]


def test_a_parametrization_in_one_file(extended, tmp_path):
    run = extended.train_and_resume(*CHOSEN, "model.power=2")
    net, cfg = load_pretrained(run)
    assert net.parametrization == ZeroAtFaces(2) and cfg.model.parametrization == "faces"
    x = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 8, 8)
    sizes = net(x, torch.full((3,), 0.1)).abs().amax(dim=(1, 2, 3))
    assert sizes[0] == sizes[2] == 0 and sizes[1] > 0

    export(run, tmp_path / "faces.safetensors", "safetensors")
    samples = [extended.draw("label=[3,4]", load_dir=path) for path in ("RUN", "faces.safetensors")]
    assert samples[0].shape == (6, 8, 8, 1) and np.array_equal(*samples)
    results = extended.measure()
    assert all(2 < results[name]["value"] < 20 for name in ("bpd", "elbo"))
    with pytest.raises(InputError, match=r"the published code has no model\.parametrization=faces: use --format"):
        export(run, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_its_options_are_checked(extended, monkeypatch):
    train = ("run_train.py", *CHOSEN, "hydra.run.dir=RUN", "training.snapshot_sampling=false", "training.n_iters=2")
    assert extended.refuse(*train, "model.powr=1") == "model.powr: no such option; did you mean model.power?"
    too_small = "model.power=0: need a number, more than 0, at most 4"
    assert extended.refuse(*train, "model.power=0") == too_small
    known = "model.parametrization=face: known are output, edm, kernel, kernel_width, kernel_faces, faces; "
    known += "did you mean faces?"
    assert extended.refuse(*train, "model.parametrization=face") == known
    extended.succeed(*train)
    assert "model.parametrization=output, but the run in" in extended.refuse(*train, "model.parametrization=output")
    extended.edit("power: 1.0", "power: 0")
    assert too_small in extended.refuse("run_vis.py", "load_dir=RUN")
    assert too_small in extended.refuse("run_train.py", "resume=RUN")
    extended.check_options(monkeypatch, "train", "model.power=1.0  power of the factor that vanishes at the faces")


def test_a_run_without_the_key_has_the_published_parametrization(tmp_path):
    cfg = tiny_config("training.snapshot_sampling=false")
    with open_dict(cfg):
        del cfg.model["parametrization"], cfg.model["sigma_data"]
    train(cfg, tmp_path, Distributed(CPU))
    net, loaded = load_pretrained(tmp_path)
    assert net.parametrization == parametrization.OutputParametrization(scale_by_sigma=True)
    assert loaded.model.parametrization == "output"
    train(tiny_config("training.snapshot_sampling=false", "training.n_iters=3"), tmp_path, Distributed(CPU))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3

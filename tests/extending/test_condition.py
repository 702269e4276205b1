"""A data set with a condition, in data of any shape: trained, resumed, drawn from, measured, loaded, exported."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import Field

from datasets import ImageDataset, load_images
from datasets.registry import DATASETS
from models import load_pretrained
from models.export import export
from tests.extending.conftest import SMALL
from utils.errors import InputError


def uniform_below(
    train: bool, shape: Sequence[int], cond_size: Annotated[int, Field(ge=1, le=1)] = 1, **_: object
) -> ImageDataset:
    """Draw numbers c, which are the condition, and values that are uniform between 0 and c."""
    generator = torch.Generator().manual_seed(int(train))
    top = torch.rand(4000 if train else 200, 1, generator=generator)
    x = torch.rand(len(top), *shape, generator=generator) * top.reshape(-1, *[1] * len(shape))
    return ImageDataset(x, top, num_classes=1, levels=None)


ENTRIES = [(DATASETS, "uniform_below", uniform_below)]
CONFIGS = [("data/uniform_below.yaml", None, """\
# Values that are uniform between 0 and a number that the network is told
dataset: uniform_below  # name in datasets/registry.py
shape: [1]              # shape of a sample
cond_size: 1            # number of values of the condition
classes: false          # a network has classes or a condition
num_classes: 1          # no classes
random_flip: false      # of images only
dequantize: false       # of data with levels only
""")]  # fmt: skip
CHOSEN = ["data=uniform_below", *SMALL]
NETWORKS = {
    "mlp": ["model=mlp", "model.width=32"],
    "adm": ["model=adm", "model.model_channels=8", "model.channel_mult=[1,1]", "model.num_blocks=1"],
}
LEARNING = ["training.n_iters=800", "training.batch_size=256", "optim.lr=3e-3", "training.noise_levels=log_normal"]
LEARNING += ["training.log_sigma_mean=-2", "training.log_sigma_std=1.5", "training.stratified=true"]
LEARNING += ["training.drop_label=0.2", "model.ema_rate=0.99", "sde.sigma_min=0.005"]
LEARNING += [f"training.{name}_freq=1000" for name in ("log", "eval", "snapshot")]


def test_a_condition_in_one_file(extended):
    run = extended.train_and_resume(*CHOSEN, *NETWORKS["mlp"], "training.drop_label=0.5")
    net, cfg = load_pretrained(run)
    assert (net.num_classes, net.cond_size, cfg.data.cond_size, net.data_shape) == (0, 1, 1, (1,))
    drawn = extended.draw("cond=[0.3]")
    stored = np.load(extended.folder / "vis0/images/samples_0.npz")
    assert stored["cond"].tolist() == [[pytest.approx(0.3)]] * 6 and "labels" not in stored
    export(run, extended.folder / "net.safetensors", "safetensors")
    assert np.array_equal(drawn, extended.draw("cond=[0.3]", load_dir="net.safetensors"))
    extended.draw("cond=[[0.3],[1]]", "w=1.5")
    assert np.load(extended.folder / "vis2/images/samples_0.npz")["cond"][:, 0].tolist() == pytest.approx([0.3, 1] * 3)
    extended.draw()
    assert np.isnan(np.load(extended.folder / "vis3/images/samples_0.npz")["cond"]).all()
    for wrong, message in [
        ("cond=[0.3,1]", "cond=[0.3, 1]: the condition of this network has 1 values"),
        ("cond=[[0.3],[1,2]]", "cond=[[0.3], [1, 2]]: the condition of this network has 1 values"),
        ("cond=[]", "cond=[]: the condition of this network has 1 values"),
        ("cond=0.3", "cond=0.3: need a list of numbers, a list of such lists, or null"),
        ("cond=[inf]", "cond=[inf]: need a list of numbers"),
        ("label=1", "label=1: this network has no classes, leave label out"),
        ("w=1", "w=1: there is no condition to guide by, give cond or guidance.dir"),
    ]:
        assert message in extended.refuse("run_vis.py", "load_dir=RUN", "device=cpu", wrong), wrong
    assert "model=vdm takes no condition: use model=adm or model=mlp" in extended.refuse(
        "run_train.py", *CHOSEN, "model=vdm"
    )
    assert "model.parametrization=kernel_faces is for a process reflected at 0 and 1, and sde=ve" in extended.refuse(
        "run_train.py", *CHOSEN, "model=mlp", "sde=ve"
    )
    extended.succeed("run_train.py", "data=digits", *SMALL, "model=mlp", "training.n_iters=1", "hydra.run.dir=DIGITS",
                     "model.width=8", "data.classes=true")  # fmt: skip
    assert "cond=[1]: this network has no condition, leave cond out" in extended.refuse(
        "run_vis.py", "load_dir=DIGITS", "device=cpu", "cond=[1]"
    )


@pytest.mark.slow(40)
def test_samples_and_densities_follow_the_condition(extended):
    """Below c values are uniform: their mean is c / 2 and their density 1 / c."""
    extended.succeed("run_train.py", *CHOSEN, *NETWORKS["mlp"], *LEARNING, "hydra.run.dir=RUN")
    options = ["sampling.method=heun", "sampling.steps=20", "eval.batch_size=800"]
    drawn = extended.draw(*options, "cond=[[0.3],[0.9]]")[:, 0]
    for top, values in ((0.3, drawn[::2]), (0.9, drawn[1::2])):
        print(f"c = {top}: mean {values.mean():.3f}, above c {(values > 1.1 * top).mean():.3f}")
        assert values.mean() == pytest.approx(top / 2, abs=0.06 * top + 4 * top / math.sqrt(12 * 400))
        assert (values > 1.1 * top).mean() < 0.03
    every = extended.draw(*options)[:, 0]  # mean of c U is 1 / 4
    assert every.mean() == pytest.approx(0.25, abs=0.05) and (every > 0.5).mean() == pytest.approx(0.153, abs=0.06)
    exact = ["metrics.bpd.divergence=exact", "metrics.bpd.rtol=1e-4", "metrics.bpd.atol=1e-4"]
    results = extended.measure(*exact, "metrics.elbo.num_times=20", images=200)
    assert results["bpd"]["labels"] == "condition of each sample given"
    expected = uniform_below(False, [1]).labels.log().mean().item()
    print(f"minus the log density: {results['bpd']['value']:.3f} nats by the flow, exactly {expected:.3f}")
    assert results["bpd"]["value"] == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", ["[2,8]", "[1,4,8]", "[1,2,4,4]"])
def test_data_of_any_shape(extended, name, shape):
    data = [f"data.shape={shape}", "training.n_iters=2", "hydra.run.dir=RUN"]
    extended.succeed("run_train.py", *CHOSEN, *NETWORKS[name], *data)
    drawn = extended.draw("cond=[0.5]")
    assert list(drawn.shape) == [6, *eval(shape)] and drawn.std() > 0.05
    export(extended.folder / "RUN", extended.folder / "net.safetensors", "safetensors")
    assert np.array_equal(drawn, extended.draw("cond=[0.5]", load_dir="net.safetensors"))


def test_a_configuration_that_does_not_fit_is_refused(registered, monkeypatch):
    with pytest.raises(InputError, match=r"data.cond_size=0, but the condition of .*uniform_below has 1 values$"):
        load_images("uniform_below", True, shape=[2])
    spoilt = uniform_below(True, [2])
    spoilt.labels[3] = math.inf
    monkeypatch.setitem(DATASETS, "uniform_below", lambda **_: spoilt)
    with pytest.raises(InputError, match=r"data.dataset=uniform_below has conditions that are not finite$"):
        load_images("uniform_below", True, shape=[2], cond_size=1)
    for labels in (torch.zeros(3), torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"labels are int64 \(N,\) or float32 \(N, K\), not torch"):
            ImageDataset(torch.zeros(3, 2), labels, 1, levels=None)

"""The recipes in configs/experiment: each is composed unchanged, and trained for two steps with a narrow network."""

import math

import pytest
import torch
from omegaconf import open_dict

from models import load_pretrained
from tests.conftest import ROOT, composed, metrics
from training.loop import train
from training.options import check_train
from utils.distributed import Distributed

NARROW = {
    "ddpmpp": ["model.nf=8", "model.ch_mult=[1,1]", "model.num_res_blocks=1"],
    "vdm": ["model.channels=8", "model.num_blocks=1"],
    "adm": ["model.model_channels=8", "model.channel_mult=[1,2]", "model.num_blocks=1"],
    "mlp": ["model.width=8", "model.num_blocks=1"],
}
# name: (network, batch size, steps, learning rate, sigma_min, image size, classes)
RECIPES = {
    "cifar10_images": ("ddpmpp", 128, 1300001, 2e-4, 0.01, 32, False),
    "cifar10_likelihood": ("vdm", 128, 10000001, 2e-4, 0.0001, 32, False),
    "imagenet32_likelihood": ("vdm", 512, 2000001, 2e-4, 0.0001, 32, False),
    "imagenet64_guided": ("adm", 2048, 400001, 1e-4, 0.01, 64, True),
    "digits": ("adm", 128, 700, 1e-3, 0.01, 8, True),
    "patches": ("adm", 128, 1500, 1e-3, 0.01, 16, False),
}


def test_all_recipes_are_listed():
    found = {path.stem for path in (ROOT / "configs/experiment").glob("*.yaml")}
    assert found == RECIPES.keys() | {"array"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_published_values(name):
    cfg = composed(f"experiment={name}")
    check_train(cfg, processes=8)
    training, optim, data = cfg.training, cfg.optim, cfg.data
    row = (cfg.model.name, training.batch_size, training.n_iters, optim.lr, cfg.sde.sigma_min)
    assert (*row, data.image_size, data.classes) == RECIPES[name]
    assert data.random_flip == (name == "cifar10_images")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name, tmp_path):
    network = RECIPES[name][0]
    small = ["training.batch_size=4", "training.n_iters=2", "training.log_freq=1", "training.eval_freq=2"]
    small += ["eval.batch_size=4", "training.snapshot_sampling=false", "device=cpu", "data.dataset=fake"]
    cfg = composed(f"experiment={name}", *NARROW[network], *small)
    with open_dict(cfg):
        del cfg.resume
    train(cfg, tmp_path, Distributed(torch.device("cpu")))
    entries = metrics(tmp_path)
    assert [entry["step"] for entry in entries] == [1, 2]
    assert all(math.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in entries)
    net, _ = load_pretrained(tmp_path)
    size, channels = cfg.data.image_size, cfg.data.num_channels
    assert net(torch.rand(2, channels, size, size), torch.full((2,), 0.1)).shape == (2, channels, size, size)

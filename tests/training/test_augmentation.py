"""Training with augmentation that the network is told."""

import pytest
import torch

from datasets import Loader
from models import create_model
from models.export import export
from models.io.initial import load_initial
from models.io.pretrained import load_pretrained
from sde import create_process
from tests.conftest import assert_same, composed, read, tiny_config
from training.data import load_splits
from training.loop import Loss, train
from training.options import check_train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = Distributed(torch.device("cpu"))
NEWEST = "checkpoints-meta/checkpoint.pth"
AUGMENTED = ("data=fake", "data.image_size=8", "data.augment=0.3", "training.snapshot_sampling=false", "logger=none")
NETWORKS = {
    "adm": ["model=adm", "model.model_channels=8", "model.channel_mult=[1,2]", "model.num_blocks=1"],
    "ddpmpp": ["model=ddpmpp", "model.nf=8", "model.ch_mult=[1,2]", "model.num_res_blocks=1", "data.classes=false"],
    "vdm": ["model=vdm", "model.channels=8", "model.num_blocks=1", "data.classes=false"],
}


@pytest.mark.parametrize("network", NETWORKS)
def test_each_network_of_images_is_told(network):
    torch.manual_seed(0)
    cfg = composed(*AUGMENTED, *NETWORKS[network])
    net = create_model(cfg.model, cfg.data, cfg.sde).double().eval()
    # As large as the embedding of a class; with smaller weights short trainings draw augmented images.
    assert net.network.embed_augmentation.weight.std().item() == pytest.approx(1, abs=0.15)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x, sigma = torch.rand(3, *net.data_shape).double(), torch.tensor([0.1, 0.5, 2.0]).double()
    nothing = net(x, sigma)
    torch.testing.assert_close(net(x, sigma, None, torch.zeros(3, 9).double()), nothing)
    told = torch.zeros(3, 9).double()
    told[1, 3] = 1.0
    changed = (net(x, sigma, None, told) - nothing).abs().amax((1, 2, 3))
    assert changed[1] > 1e-5 and changed[[0, 2]].max() < 1e-12
    plain = create_model(cfg.model, {**cfg.data, "augment": 0}, cfg.sde)
    assert net.state_dict().keys() - plain.state_dict().keys() == {"network.embed_augmentation.weight"}


def test_a_batch_is_augmented_as_it_says_and_the_held_out_one_is_not():
    cfg = tiny_config(*AUGMENTED)
    images, _ = load_splits(cfg, CPU)
    loader = Loader(images, 64, cfg.seed, "cpu")
    loss_fn = Loss(cfg, create_process(cfg.sde))
    batch, same, other = (loss_fn.sample_batch(loader, step) for step in (3, 3, 4))
    assert torch.equal(batch.augmentation, same.augmentation) and torch.equal(batch.x, same.x)
    assert not torch.equal(batch.augmentation, other.augmentation)
    x0, still = loader(3)[0], (batch.augmentation == 0).all(1)
    assert 0 < still.sum() < 64 and torch.equal(batch.x0[still], x0[still])
    assert (batch.x0[~still] != x0[~still]).flatten(1).any(1).all()
    assert torch.equal(batch[8:24].augmentation, batch.augmentation[8:24])
    held_out = loss_fn.sample_held_out_batch(loader)
    assert held_out.augmentation is None and torch.equal(held_out.x0, loader(0)[0])


@pytest.mark.parametrize("option", ["compile=false", "training.grad_accum_steps=3"])
def test_it_resumes_exactly(tmp_path, option):
    for name, stops in (("whole", [6]), ("parts", [3, 6])):
        for stop in stops:
            train(tiny_config(*AUGMENTED, option, f"training.n_iters={stop}"), tmp_path / name, CPU)
    whole, parts = (read(tmp_path / name / NEWEST) for name in ("whole", "parts"))
    assert_same(whole, parts)
    net, _ = load_pretrained(tmp_path / "whole")
    with pytest.raises(
        InputError, match=r"data.augment=0.3: the published networks cannot be told of it: use --format"
    ):
        export(tmp_path / "whole", tmp_path / "published")
    export(tmp_path / "whole", tmp_path / "model.safetensors", "safetensors")
    x, sigma = torch.rand(2, *net.data_shape), torch.tensor([0.1, 1.0])
    assert torch.equal(load_pretrained(tmp_path / "model.safetensors")[0](x, sigma), net(x, sigma))


def test_the_embedding_of_the_augmentation_comes_and_goes(tmp_path):
    cfg = tiny_config(*AUGMENTED, "training.n_iters=1")
    train(cfg, tmp_path, CPU)
    path = tmp_path / "checkpoints/checkpoint_1.pth"
    without = load_initial(path, cfg.model, {**cfg.data, "augment": 0}, cfg.sde)
    assert without.unused == ["embed_augmentation.weight"] and not without.fresh
    assert not load_initial(path, cfg.model, cfg.data, cfg.sde).fresh


def test_what_cannot_be():
    with pytest.raises(InputError, match=r"data.augment=1.5: need a number.* at most 1"):
        check_train(tiny_config("data.augment=1.5"), 1)
    cfg = composed("data=array", "model=mlp")
    message = "data.augment=0.1, but model=mlp cannot be told of it: use model=ddpmpp or model=vdm or model=adm"
    with pytest.raises(InputError, match=message):
        create_model(cfg.model, {"shape": [2], "classes": False, "augment": 0.1}, cfg.sde)

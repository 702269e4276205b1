"""Images larger than 512x512: only with max_image_size, also of a loaded run."""

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.generate import ImageSampler
from models import load_pretrained
from models.export import export
from tests.conftest import composed, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = Distributed(torch.device("cpu"))


def test_large_images_need_the_key_to_train_and_to_load(tmp_path):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(256, size=(520, 520, 3), dtype=np.uint8)
        (tmp_path / "pics").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"pics/{i}.png")
    options = ["data=folder", f"data.root={tmp_path}/pics", f"dataroot={tmp_path}/data", "data.image_size=520"]
    options += ["training.n_iters=1", "training.batch_size=1", "eval.batch_size=1", "training.snapshot_sampling=false"]
    message = r"data.image_size=520: more values than a colour image of 512x512; a larger max_image_size allows them$"
    with pytest.raises(InputError, match=message):
        train(tiny_config(*options), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        InputError, match=r"data.image_size=500 and data.random_crop=20: more values than a colour image"
    ):
        train(tiny_config(*options, "data.image_size=500", "data.random_crop=20"), tmp_path / "run", CPU)
    options.append("max_image_size=520")
    train(tiny_config(*options), tmp_path / "run", CPU)
    train(tiny_config(*options, "training.n_iters=2"), tmp_path / "run", CPU)
    with pytest.raises(InputError, match=message):
        train(tiny_config(*options[:-1], "training.n_iters=3"), tmp_path / "run", CPU)

    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path / "run")
    assert load_pretrained(tmp_path / "run", max_image_size=520)[0].data_shape == (3, 520, 520)
    export(tmp_path / "run", tmp_path / "model.safetensors", "safetensors", max_image_size=520)
    drawing = [f"load_dir={tmp_path}/model.safetensors", "sampling.method=multistep", "sampling.steps=2", "device=cpu"]
    with pytest.raises(InputError, match=message):
        ImageSampler(composed(*drawing, name="vis"), CPU.device)
    sampler = ImageSampler(composed(*drawing, "max_image_size=520", name="vis"), CPU.device)
    assert sampler(range(1)).pixels.shape == (1, 520, 520, 3)

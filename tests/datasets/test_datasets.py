import hashlib
import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from datasets import Loader, load_images
from utils.errors import InputError


def digits(train):
    return load_images("digits", train, image_size=8, num_channels=1, num_classes=10)


def test_digits_are_all_there_once_in_fixed_parts():
    train, held_out = digits(True), digits(False)
    assert (len(train), len(held_out)) == (1438, 359)
    assert train.levels == 17 and train.data.max() == 16 and train.data.dtype == torch.uint8
    ours = torch.cat([train.data, held_out.data]).reshape(-1, 64).numpy()
    real = load_digits()
    ours = np.column_stack([ours, np.concatenate([train.labels, held_out.labels])])
    real_rows = np.column_stack([real.data, real.target])
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, real_rows.astype(int).tolist()))
    assert torch.equal(held_out.data[0, 0], torch.tensor(real.images[4]).to(torch.uint8))
    assert train.labels.bincount().min() > 100


def test_fake_images_have_the_shape_asked_for_and_repeat():
    options = {"image_size": 5, "num_channels": 2, "num_classes": 3}
    first, again = (load_images("fake", True, **options) for _ in range(2))
    assert first.data.shape == (1024, 2, 5, 5) and first.levels == 256
    assert torch.equal(first.data, again.data)
    assert first.labels.unique().tolist() == [0, 1, 2]
    assert not torch.equal(first.data[:256], load_images("fake", False, **options).data)


@pytest.mark.parametrize(
    ("dataset", "changes", "message"),
    [
        ("mnist", {}, "data.dataset=mnist"),
        ("digits", {"image_size": 28}, "image_size"),
        ("digits", {"num_classes": 5}, "data.num_classes=5"),
    ],
)
def test_a_data_set_that_does_not_match_its_configuration_is_refused(dataset, changes, message):
    with pytest.raises(InputError, match=message):
        load_images(dataset, True, **{"image_size": 8, "num_channels": 1, "num_classes": 10} | changes)


def test_cifar10_from_torchvisions_files(tmp_path, monkeypatch):
    import torchvision.datasets as tv

    rng = np.random.default_rng(0)
    folder = tmp_path / tv.CIFAR10.base_folder
    folder.mkdir()

    def write(name, contents):
        data = pickle.dumps(contents)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def part(name):
        planes = rng.integers(256, size=(20, 3072), dtype=np.uint8)
        return write(name, {"data": planes, "labels": list(range(10)) * 2}), planes

    parts = [part(f"data_batch_{i}") for i in range(1, 6)]
    test_part, test_planes = part("test_batch")
    names, md5 = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(tv.CIFAR10, "train_list", [entry for entry, _ in parts])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [test_part])
    monkeypatch.setattr(tv.CIFAR10, "meta", {"filename": names, "key": "label_names", "md5": md5})

    options = {"image_size": 32, "num_channels": 3, "num_classes": 10, "dataroot": str(tmp_path)}
    train, held_out = load_images("CIFAR10", True, **options), load_images("cifar10", False, **options)
    expected = np.concatenate([planes for _, planes in parts]).reshape(100, 3, 32, 32)
    np.testing.assert_array_equal(train.data.numpy(), expected)
    np.testing.assert_array_equal(held_out.data.numpy(), test_planes.reshape(20, 3, 32, 32))
    assert train.labels.tolist() == list(range(10)) * 10
    assert train.levels == 256


def test_cifar10_that_cannot_be_downloaded_names_the_file_to_place(tmp_path, monkeypatch):
    import torchvision.datasets as tv

    monkeypatch.setattr(tv.CIFAR10, "url", (tmp_path / "nowhere").as_uri())
    with pytest.raises(InputError, match=r"place cifar-10-python\.tar\.gz there"):
        load_images("cifar10", True, image_size=32, num_channels=3, num_classes=10, dataroot=str(tmp_path))


def test_batches_scale_by_the_levels_and_keep_labels_with_images():
    data = digits(True)
    x0, labels = Loader(data, 64, seed=0, device="cpu")(0)
    index = Loader(data, 64, seed=0, device="cpu").indices(0)
    assert x0.dtype == torch.float32 and x0.max() == 1.0 and x0.min() == 0.0
    assert torch.equal((x0 * 16).round().to(torch.uint8), data.data[index])
    assert torch.equal(labels, data.labels[index])


def test_the_order_is_a_function_of_seed_and_step_and_every_epoch_is_a_permutation():
    data = load_images("fake", False, image_size=2, num_channels=1, num_classes=2)
    batches = Loader(data, 100, seed=7, device="cpu")
    stream = np.concatenate([batches.indices(k) for k in range(64)])  # 25 epochs of 256
    for epoch in stream.reshape(25, 256):
        assert sorted(epoch) == list(range(256))
    assert not np.array_equal(stream[:256], stream[256:512])
    fresh = Loader(data, 100, seed=7, device="cpu")
    for k in (50, 3, 2, 51):
        np.testing.assert_array_equal(fresh.indices(k), stream[100 * k : 100 * (k + 1)])
    assert not np.array_equal(Loader(data, 100, seed=8, device="cpu").indices(0), stream[:100])
    small = Loader(data, 600, seed=7, device="cpu")  # more than two epochs in a batch
    np.testing.assert_array_equal(small.indices(1), stream[600:1200])


def test_flips_mirror_about_half_of_the_images():
    data = load_images("fake", True, image_size=4, num_channels=1, num_classes=2)
    torch.manual_seed(0)
    plain, flipped = (Loader(data, 1024, 0, "cpu", random_flip=flip)(0)[0] for flip in (False, True))
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain.flip(-1) == flipped).flatten(1).all(1)
    assert torch.all(same ^ mirrored)
    assert 400 < mirrored.sum() < 624

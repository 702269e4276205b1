"""Folders of images, the cache made of them, and batches read from it."""

import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import Loader, load_images
from datasets import download_imagenet32 as imagenet32
from datasets.cache import open_cached
from datasets.image_io import UnreadableError, find_images, read_image
from datasets.options import check_shape
from tests.conftest import ROOT, assert_same, environment, read
from utils.errors import InputError, UserError

RNG = np.random.default_rng(0)


def save(path, height=8, width=8, channels=3):
    """Write a random image without loss; return its pixels (H, W, C)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(256, size=(height, width, channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return pixels


def classes_of(folder, names="ab", n=20):
    return {f"{name}/{i:02}.png": save(folder / name / f"{i:02}.png") for name in names for i in range(n)}


def folder_options(tmp_path, **changes):
    common = {"image_size": 8, "num_channels": 3, "num_classes": 1, "classes": False}
    return {**common, "dataroot": str(tmp_path / "data"), "root": str(tmp_path / "pics"), **changes}


def as_stored(pixels):
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def cache_files(tmp_path):
    return {path.name: path.stat().st_ino for path in (tmp_path / "data/cache").iterdir() if path.suffix != ".lock"}


def test_a_folder_is_cached_whole_and_every_tenth_image_is_held_out(tmp_path):
    pixels = classes_of(tmp_path / "pics")
    (tmp_path / "pics/notes.txt").write_text("no image")
    (tmp_path / "pics/a/.hidden.png").write_bytes(b"")
    options = folder_options(tmp_path, classes=True, num_classes=2)
    train, held_out = (load_images("folder", part, **options) for part in (True, False))
    names = sorted(pixels)
    out = [name for i, name in enumerate(names) if i % 10 == 9]
    kept = [name for name in names if name not in out]
    for images, expected in ((train, kept), (held_out, out)):
        assert torch.equal(images.data, as_stored([pixels[name] for name in expected]))
        assert images.labels.tolist() == ["ab".index(name[0]) for name in expected]
        assert images.num_classes == 2 and images.levels == 256
    name = next((tmp_path / "data/cache").glob("pics-*-train.json")).name.removesuffix("json")
    for array, expected in (("pixels", train.data), ("labels", train.labels)):
        (path,) = (tmp_path / "data/cache").glob(f"{name}*.{array}.npy")
        assert np.array_equal(np.load(path), expected.numpy())


def test_train_and_valid_below_are_the_splits(tmp_path):
    pixels = {part: classes_of(tmp_path / "pics" / part, n=3) for part in ("train", "valid")}
    options = folder_options(tmp_path, classes=True, num_classes=2)
    for part, train in (("train", True), ("valid", False)):
        images = load_images("folder", train, **options)
        assert torch.equal(images.data, as_stored([pixels[part][name] for name in sorted(pixels[part])]))
        assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    save(tmp_path / "pics/valid/c/0.png")
    with pytest.raises(InputError, match=r"valid/c/0.png is of a class that .*train does not have"):
        load_images("folder", False, **options)


def test_sizes_and_colours_are_mixed_and_damaged_files_listed(tmp_path, caplog):
    folder = tmp_path / "pics"
    save(folder / "0.png", 16, 40)
    save(folder / "1.jpg", 100, 7)
    save(folder / "2.png", 9, 9, channels=1)
    for i in range(3, 12):
        save(folder / f"{i:02}.bmp")
    (folder / "cut.jpg").write_bytes((folder / "1.jpg").read_bytes()[:200])
    (folder / "empty.png").touch()
    images = load_images("folder", True, **folder_options(tmp_path))
    assert len(images) == 11 and images.data.shape[1:] == (3, 8, 8)
    listing = next((tmp_path / "data/cache").glob("*-train.unreadable.txt")).read_text()
    assert [line.split("\t")[0] for line in listing.splitlines()] == ["cut.jpg", "empty.png"]
    assert "2 of 13 files left out" in caplog.text
    grey = load_images("folder", True, **folder_options(tmp_path, num_channels=1))
    assert grey.data.shape == (11, 1, 8, 8)


def test_a_cache_is_made_once_and_again_when_a_file_changes(tmp_path):
    pixels, options = classes_of(tmp_path / "pics"), folder_options(tmp_path)
    load_images("folder", True, **options)
    first = cache_files(tmp_path)
    load_images("folder", True, **options)
    assert cache_files(tmp_path) == first
    changed = tmp_path / "pics/a/00.png"
    times = changed.stat()
    pixels["a/00.png"] = save(changed)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    again = load_images("folder", True, **options)
    assert torch.equal(again.data[0], as_stored([pixels["a/00.png"]])[0])
    second = cache_files(tmp_path)
    assert len(second) == len(first) == 3 and second.keys() != first.keys()  # json, pixels, labels; no older arrays
    changed.rename(changed.with_name("zz.png"))
    assert torch.equal(load_images("folder", True, **options).data[0], as_stored([pixels["a/01.png"]])[0])
    load_images("folder", True, **{**options, "image_size": 4})
    assert len(cache_files(tmp_path)) == 6


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:9] + b"x" + b[10:], lambda b: b + b"x", None]
)
@pytest.mark.parametrize("part", ["json", "pixels.npy", "labels.npy"])
def test_an_incomplete_cache_is_made_again(tmp_path, caplog, part, damage):
    caplog.set_level(logging.INFO)
    pixels, options = classes_of(tmp_path / "pics"), folder_options(tmp_path)
    before = load_images("folder", True, **options).data.clone()
    (path,) = (tmp_path / "data/cache").glob(f"*.{part}")
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    (name,) = (path.stem for path in (tmp_path / "data/cache").glob(".*.lock"))
    left = tmp_path / "data/cache" / f"{name.removesuffix('.json')}.pixels.tmp"  # what a kill leaves behind
    left.write_bytes(b"half of one")
    assert torch.equal(load_images("folder", True, **options).data, before)
    assert len(pixels) == 40 and not list((tmp_path / "data/cache").glob(".*.tmp"))
    assert caplog.text.count("caching 36 images") == 2 and len(cache_files(tmp_path)) == 3


@pytest.mark.slow(12)
def test_two_processes_make_one_cache(tmp_path):
    for i in range(600):
        save(tmp_path / "pics" / f"{i:03}.png")
    arguments = ["data=folder", "data.root=pics", "data.image_size=8", "dataroot=data", "training.n_iters=0"]

    def load(name):
        command = [sys.executable, ROOT / "run_train.py", *arguments, f"hydra.run.dir={name}"]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(load, ("one", "two")))
    assert [result.returncode for result in results] == [0, 0], results
    said = results[0].stderr + results[1].stderr
    assert said.count("caching 540 images") == 1 and said.count("caching 60 images") == 1
    for result in results:
        assert "540 images to train on, 60 held out, each 3 x 8 x 8 (channels x height x width)" in result.stderr
        assert "no classes; 256 levels" in result.stderr
    assert Image.open(tmp_path / "one/data.png").size == (8 * 42 + 2, 8 * 42 + 2)
    assert sorted(os.listdir(tmp_path / "one")) == ["data.png", "logs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": None}, "data.root is missing"),
        ({"root": "nowhere"}, "data.root=nowhere is not a folder"),
        ({"classes": True, "num_classes": 3}, "data.num_classes=3, but .*pics has 2 folders of images"),
    ],
)
def test_a_folder_that_does_not_match_its_configuration_is_refused(tmp_path, changes, message):
    classes_of(tmp_path / "pics")
    with pytest.raises(InputError, match=message):
        load_images("folder", True, **folder_options(tmp_path, **changes))
    assert not (tmp_path / "data").exists()


def test_a_folder_without_images_or_classes(tmp_path):
    (tmp_path / "pics").mkdir()
    with pytest.raises(InputError, match=r"data.root=.*pics has no images to train on"):
        load_images("folder", True, **folder_options(tmp_path))
    classes_of(tmp_path / "pics", n=6)
    save(tmp_path / "pics/alone.png")
    with pytest.raises(InputError, match=r"alone.png is in no folder of a class"):
        load_images("folder", True, **folder_options(tmp_path, classes=True, num_classes=2))
    for path in find_images(tmp_path / "pics"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of the 12 images of pics-.*-train can be read"):
        load_images("folder", True, **folder_options(tmp_path))
    assert not [path for path in (tmp_path / "data/cache").glob("*") if path.suffix in (".json", ".npy", ".tmp")]


def test_an_image_is_cropped_in_its_middle_and_resized_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 200, 3), np.uint8)
    stripes[:, 68:132:2] = 255  # fine ones in the middle, which a resize without antialiasing turns black or white
    stripes[:, :40] = stripes[:, -40:] = [255, 0, 0]
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    image = read_image(tmp_path / "stripes.png", 8)
    assert image.shape == (8, 8, 3) and np.abs(image[:, 1:-1].astype(int) - 127.5).max() < 10
    sixteen = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    Image.fromarray(sixteen).save(tmp_path / "sixteen.png")
    assert np.array_equal(read_image(tmp_path / "sixteen.png", 8, 1)[..., 0], (sixteen >> 8).astype(np.uint8))
    with pytest.raises(UnreadableError):
        read_image(tmp_path / "nowhere.png", 8)


def test_batches_from_disk_are_those_from_memory(tmp_path):
    def parts():
        yield RNG.integers(256, size=(300, 3, 4, 4), dtype=np.uint8), np.arange(300), []

    images = open_cached(tmp_path / "x.json", "random", (3, 4, 4), 300, parts, 300)
    memory, disk = (Loader(images, 70, 3, "cpu", random_flip=True, in_memory=limit) for limit in (10**9, 0))
    for step in (0, 1, 2, 9, 10, 3, 3, 100):
        batches = []
        for each in (memory, disk):
            torch.manual_seed(step)
            batches.append(each(step))
        assert all(map(torch.equal, *batches))
        index = memory.indices(step)
        assert batches[0][1].tolist() == index.tolist()
    torch.manual_seed(0)
    plain, _ = Loader(images, 70, 3, "cpu", in_memory=0)(5)
    assert torch.equal(plain, images.data[memory.indices(5)].float() * (1 / 255))


def test_random_windows_of_larger_images(tmp_path):
    """Training takes windows from everywhere; what is held out and compared with is the central one."""
    position = np.arange(64).reshape(1, 1, 8, 8).astype(np.uint8)

    def parts():
        yield np.repeat(position, 300, 0), np.arange(300), []

    images = open_cached(tmp_path / "x.json", "positions", (1, 8, 8), 300, parts, 300).crop(3)
    assert images.shape == (1, 5, 5) and len(images) == 300
    assert torch.equal(images.data[7, 0], torch.from_numpy(position[0, 0, 1:6, 1:6]))
    found = []
    for limit in (10**9, 0):
        torch.manual_seed(0)
        found.append((Loader(images, 300, 3, "cpu", random_crop=True, in_memory=limit)(0)[0] * 255).round().long())
        central = Loader(images, 300, 3, "cpu", in_memory=limit)(0)[0]
        assert torch.equal(central, images.normalize(images.data))
    assert torch.equal(*found)
    corners = found[0][:, 0, 0, 0]
    assert set(corners.tolist()) == {8 * row + column for row in range(4) for column in range(4)}
    window = torch.arange(5)
    assert torch.equal(found[0][:, 0], corners[:, None, None] + 8 * window[:, None] + window)


def test_a_folder_with_random_windows(tmp_path):
    classes_of(tmp_path / "pics")
    given = {"image_size": 8, "num_channels": 3, "classes": False, "dataroot": str(tmp_path / "data")}
    given["root"] = str(tmp_path / "pics")
    plain = load_images("folder", False, **given | {"image_size": 12})
    cut = load_images("folder", False, **given, random_crop=4)
    assert torch.equal(cut.data, plain.data[..., 2:10, 2:10]) and torch.equal(cut.uncropped, plain.data)
    with pytest.raises(InputError, match=r"data.random_crop=2: samples of data.shape=\[3, 8\] are not cropped$"):
        check_shape({"shape": [3, 8], "random_crop": 2})
    with pytest.raises(InputError, match=r"data.random_crop=2: data.dataset=digits has images of its own size only$"):
        load_images("digits", True, image_size=8, num_channels=1, random_crop=2)


def test_a_run_on_a_data_set_on_disk_resumes_exactly(tmp_path, monkeypatch):
    from tests.conftest import tiny_config
    from training.loop import train
    from utils.distributed import Distributed

    classes_of(tmp_path / "pics")
    monkeypatch.setattr("datasets.loader.Loader.__init__.__defaults__", (False, False, False, 0))
    options = ["data=folder", f"data.root={tmp_path / 'pics'}", "data.image_size=8", f"dataroot={tmp_path / 'data'}"]
    options = [*options, "data.random_flip=true", "data.random_crop=2", "data.augment=0.3", "model.ema_rate=0.9"]
    distributed = Distributed(torch.device("cpu"))
    for name, stops in (("whole", [9]), ("parts", [4, 9])):
        for stop in stops:
            train(tiny_config(*options, f"training.n_iters={stop}"), tmp_path / name, distributed)
    newest = "checkpoints-meta/checkpoint.pth"
    (tmp_path / "pics").rename(tmp_path / "moved")
    options[1] = f"data.root={tmp_path / 'moved'}"
    for name in ("whole", "parts"):
        train(tiny_config(*options, "training.n_iters=11"), tmp_path / name, distributed)
    assert_same(read(tmp_path / "whole" / newest), read(tmp_path / "parts" / newest))


def test_imagenet64c_is_what_its_listing_says(tmp_path):
    options = {"image_size": 8, "num_channels": 3, "num_classes": 5, "dataroot": str(tmp_path)}
    base = tmp_path / "imagenet-64x64/train"
    with pytest.raises(InputError, match=r"compile_imagenet64.py /path/to/imagenet makes it"):
        load_images("imagenet64c", True, **options)
    names = ["00000/img00000003.png", "00000/img00000001.png", "00001/img00001000.png"]
    pixels = [save(base / name) for name in names]
    save(base / "00000/img00000000.png")
    listing = base / "dataset.json"
    listing.write_text(json.dumps({"labels": list(zip(names, (4, 0, 2), strict=True))}))
    images = load_images("imagenet64c", True, **options)
    assert torch.equal(images.data, as_stored(pixels)) and images.labels.tolist() == [4, 0, 2]
    for text, message in [
        ("{", "cannot be read"),
        ('{"labels": []}', "does not name images and their classes"),
        ('{"labels": [["00000/img00000001.png", 5]]}', "0 to data.num_classes=5 - 1"),
        ('{"labels": [["00000/img00000001.png", 0.5]]}', "does not name images and their classes"),
        ('{"labels": [["../../secret.png", 0]]}', "names a file outside of its folder"),
        ('{"labels": [["/etc/secret.png", 0]]}', "names a file outside of its folder"),
        ('{"labels": [["00000/gone.png", 0]]}', "gone.png is not there"),
    ]:
        listing.write_text(text)
        with pytest.raises(InputError, match=message):
            load_images("imagenet64c", True, **options)


IMAGENET32 = {"image_size": 32, "num_channels": 3, "num_classes": 1, "classes": False}


def test_imagenet32_of_pngs_has_no_classes(tmp_path):
    with pytest.raises(InputError, match=r"train_32x32 has no images: sh datasets/download_imagenet32.sh"):
        load_images("imagenet32", True, **IMAGENET32, dataroot=str(tmp_path))
    pixels = [save(tmp_path / f"ds_imagenet/train_32x32/{i}.png", 32, 32) for i in range(3)]
    images = load_images("imagenet32", True, **IMAGENET32, dataroot=str(tmp_path))
    assert torch.equal(images.data, as_stored(pixels))
    with pytest.raises(InputError, match=r"data.classes=True, but the PNGs of .*train_32x32 have no classes"):
        load_images("imagenet32", True, **{**IMAGENET32, "classes": True}, dataroot=str(tmp_path))


def arrays(path, n, first=1):
    data = RNG.integers(256, size=(n, 3072), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, data=data, labels=np.arange(first, first + n), mean=data.mean(0))
    return data.reshape(n, 3, 32, 32)


def run_script(tmp_path, *arguments):
    command = ["sh", str(ROOT / "datasets/download_imagenet32.sh"), "--to", str(tmp_path / "ds_imagenet"), *arguments]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return subprocess.run(command, env={**environment(), "PATH": path}, capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.slow(15)
def test_imagenet32_of_the_arrays_of_image_net_org(tmp_path):
    """Run the script as a user does, on a zip archive and a folder as image-net.org distributes them."""
    parts = [arrays(tmp_path / f"given/train_data_batch_{i}.npz", 4, first) for i, first in ((1, 1), (2, 997))]
    with zipfile.ZipFile(tmp_path / "Imagenet32_val.zip", "w") as archive:
        valid = arrays(tmp_path / "val_data.npz", 5)
        archive.write(tmp_path / "val_data.npz", "../val_data.npz")  # only the name counts
    result = run_script(tmp_path, "given", "Imagenet32_val.zip")
    assert result.returncode == 0, result.stderr
    assert "8 images in" in result.stdout and "of 1,281,167: are some files missing?" in result.stdout
    options = {**IMAGENET32, "classes": True, "num_classes": 1000, "dataroot": str(tmp_path)}
    train, held_out = (load_images("imagenet32", part, **options) for part in (True, False))
    assert torch.equal(train.data, torch.from_numpy(np.concatenate(parts)))
    assert train.labels.tolist() == [0, 1, 2, 3, 996, 997, 998, 999]
    assert torch.equal(held_out.data, torch.from_numpy(valid))
    np.savez(tmp_path / "train_wrong.npz", data=np.zeros((2, 10), np.uint8), labels=[1, 2])
    for path, message in [("train_wrong.npz", "data is uint8 (2, 10)"), ("given/none.npz", "none.npz is not there")]:
        result = run_script(tmp_path, path)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "ds_imagenet/train_32x32/train_wrong.npz").exists()


def test_damaged_arrays_of_image_net_org_are_refused(tmp_path):
    arrays(tmp_path / "a/val_data.npz", 2)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for name in ("a/val_data.npz", "b/val_data.npz"):
            archive.write(tmp_path / "a/val_data.npz", name)
    data = (tmp_path / "a/val_data.npz").read_bytes()
    encrypted = bytearray((tmp_path / "twice.zip").read_bytes())
    encrypted[encrypted.rindex(b"PK\1\2") + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(encrypted)
    assert data.count(b"(2, 3072)") == 1
    (tmp_path / "more.npz").write_bytes(data.replace(b"(2, 3072)", b"(9, 3072)"))
    (tmp_path / "text.npz").write_text("data")
    with pytest.raises(InputError, match=r"twice\.zip has val_data\.npz a second time"):
        imagenet32.find_arrays([tmp_path / "twice.zip"])
    member = ("val_data.npz", tmp_path / "encrypted.zip", "b/val_data.npz")
    for array, message in (
        (member, "is encrypted"),
        (("x.npz", tmp_path / "more.npz", None), r"it says that it holds uint8 \(9, 3072\), but has 6,144 bytes"),
        (
            ("x.npz", tmp_path / "text.npz", None),
            "x.npz is not an array of downsampled ImageNet .it does not start as one",
        ),
    ):
        with pytest.raises(InputError, match=message):
            imagenet32.take_arrays("valid_32x32", [array], tmp_path / "out")
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out/valid_32x32"]


def test_imagenet32_of_the_published_archives(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet32, "COUNTS", {"train_32x32": 3, "valid_32x32": 2})
    folder = tmp_path / "ds_imagenet"
    for i in range(3):
        save(tmp_path / f"train_32x32/{i}.png", 32, 32)
    folder.mkdir()
    with tarfile.open(folder / "train_32x32.tar", "w") as archive:
        archive.add(tmp_path / "train_32x32", "train_32x32")
    (folder / "valid_32x32.tar").write_bytes((folder / "train_32x32.tar").read_bytes())
    imagenet32.fetch_pngs("train_32x32", folder, None)
    assert sorted(path.name for path in (folder / "train_32x32").iterdir()) == ["0.png", "1.png", "2.png"]
    assert (folder / "SHA256SUMS").read_text().endswith("  train_32x32.tar\n")
    with pytest.raises(UserError, match=r"valid_32x32.tar has 3 PNGs in 1 folders, not 2 in one"):
        imagenet32.fetch_pngs("valid_32x32", folder, None)
    assert not (folder / "valid_32x32").exists()


def test_cifar10_ahead_of_its_use_names_the_file_to_place(tmp_path):
    command = [sys.executable, "download_cifar10.py", "--to", str(tmp_path)]
    environ = {**environment(), "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    result = subprocess.run(command, cwd=ROOT / "datasets", env=environ, capture_output=True, text=True)
    assert result.returncode == 1
    assert "place cifar-10-python.tar.gz there" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow(38)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_caching_leaves_no_files_and_no_processes(tmp_path, signum, code):
    (tmp_path / "pics").mkdir()
    save(tmp_path / "one.png", 400, 400)
    for i in range(6000):
        os.link(tmp_path / "one.png", tmp_path / f"pics/{i}.png")
    arguments = ["data=folder", "data.root=pics", "dataroot=data", "hydra.run.dir=run", "model.nf=8"]
    command = [sys.executable, ROOT / "run_train.py", *arguments]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, process_group=0
    )
    while process.poll() is None and not list(tmp_path.glob("data/cache/.*.tmp")):
        time.sleep(0.01)
    time.sleep(1)
    os.killpg(process.pid, signum) if signum == signal.SIGINT else process.send_signal(signum)
    said = process.communicate(timeout=60)[1]  # ends when the last process that could write there has
    assert process.returncode == code, said
    assert "Traceback" not in said and "Error" not in said
    left = sorted(path.suffix for path in (tmp_path / "data/cache").iterdir())
    assert left == ([".lock", ".tmp"] if signum == signal.SIGKILL else [".lock"])

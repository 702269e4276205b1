"""The data set ``folder``: splits, classes, links, and other files among the images."""

import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from datasets import load_images
from datasets.decode import read_image
from datasets.find import find_images, scan_folder
from datasets.folders import natural_order
from models import load_pretrained
from models.export import export
from models.io.config import load_config
from sampling.images import grid, save_each
from sampling.labels import resolve_labels
from tests.conftest import TINY, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError, printable

CPU = Distributed(torch.device("cpu"))


def save(path, value=0):
    """Write an image whose pixels all have one value, by which it is recognised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def fill(folder, names, first=0):
    for value, name in enumerate(names, first):
        save(folder / name, value)


def load(tmp_path, train=True, **changes):
    options = {"image_size": 8, "num_channels": 3, "num_classes": 1, "classes": False}
    options |= {"dataroot": str(tmp_path / "data"), "root": str(tmp_path / "pics"), **changes}
    return load_images("folder", train, **options)


def values(images):
    return images.data[:, 0, 0, 0].tolist()


def both(tmp_path, **changes):
    return tuple(values(load(tmp_path, part, **changes)) for part in (True, False))


def numbered(n):
    return [f"{k:02}.png" for k in range(n)]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("Training", "Testing"),
        ("Train", "Val"),
        ("train", "test"),
        ("TRAIN", "valid"),
        ("training_set", "Test_Set"),
        ("train", "Validation"),
    ],
)
def test_splits_are_known_by_any_of_their_names(tmp_path, train, held_out):
    for part, first in ((train, 10), (held_out, 20)):
        fill(tmp_path / "pics" / part, ["cat/0.png", "cat/1.png", "dog/0.png"], first)
    assert both(tmp_path) == ([10, 11, 12], [20, 21, 22])
    options = {"classes": True, "num_classes": 2}
    for part, expected in ((True, [10, 11, 12]), (False, [20, 21, 22])):
        images = load(tmp_path, part, **options)
        assert values(images) == expected and images.labels.tolist() == [0, 0, 1]
        assert images.class_names == ("cat", "dog")


def test_of_validation_and_test_images_the_first_are_held_out(tmp_path, caplog):
    fill(tmp_path / "pics", ["train/0.png", "test/0.png", "val/0.png", "more/0.png", "1.png"])
    assert both(tmp_path) == ([0], [2])
    assert f"not used, beside train and val: 1 in test, 1 in {tmp_path}/pics, 1 in more" in caplog.text
    fill(tmp_path / "pics", ["Training/0.png"])
    with pytest.raises(InputError, match=r"pics has Training and train: which is to be trained on\? rename"):
        load(tmp_path)


def test_a_class_that_is_called_like_a_split_is_refused(tmp_path, caplog):
    fill(tmp_path / "pics", ["train/0.png", "car/0.png", "bus/0.png"])
    with pytest.raises(
        InputError, match=r"pics has train beside bus, car: a class cannot be called like a split, rename"
    ):
        load(tmp_path, classes=True, num_classes=3)
    assert both(tmp_path) == ([2, 1], [0])
    assert "train is a folder of images like any other" in caplog.text
    shutil.rmtree(tmp_path / "pics")
    fill(tmp_path / "pics", ["Test/0.png"])
    with pytest.raises(InputError, match=r"pics has Test and no train: a class cannot be called"):
        load(tmp_path, classes=True, num_classes=1)


def test_splits_one_folder_below_are_not_mixed_silently(tmp_path, caplog):
    """The splits are in one folder, as in an archive, or in each class folder."""
    fill(tmp_path / "pics/archive", ["Train/0.png", "Test/0.png"])
    with pytest.raises(InputError, match=r"pics has its splits one folder below: say data.root=.*/pics/archive$"):
        load(tmp_path)
    fill(tmp_path / "pics", ["cat/train/0.png", "cat/test/0.png"])
    load(tmp_path)
    assert f"the splits below {tmp_path}/pics/cat are not taken as such" in caplog.text


def test_train_alone_holds_out_a_share_of_itself(tmp_path, caplog):
    fill(tmp_path / "pics/train", [f"{name}/{k:02}.png" for name in "ab" for k in range(20)])
    (tmp_path / "pics/valid").mkdir()  # with nothing in it
    for options, labels in (({}, {0}), ({"classes": True, "num_classes": 2}, {0, 1})):
        training, held_out = (load(tmp_path, part, **options) for part in (True, False))
        assert values(held_out) == [9, 19, 29, 39]
        assert sorted(values(training) + values(held_out)) == list(range(40))
        assert set(held_out.labels.tolist()) == labels
    (tmp_path / "pics/valid/0.png").write_bytes(b"no image")
    assert both(tmp_path)[1] == [9, 19, 29, 39]
    assert "no image of" in caplog.text and "is held out instead" in caplog.text


def test_a_tenth_is_held_out_within_each_class(tmp_path):
    counts = {"a": 25, "b": 13, "c": 4, "d": 4, "e": 4, "f": 1}
    fill(tmp_path / "pics", [f"{name}/{k:02}.png" for name, n in counts.items() for k in range(n)])
    options = {"classes": True, "num_classes": 6}
    training, held_out = (load(tmp_path, part, **options) for part in (True, False))
    assert held_out.labels.bincount(minlength=6).tolist() == [2, 1, 0, 0, 1, 0]
    assert training.labels.bincount(minlength=6).tolist() == [23, 12, 4, 4, 3, 1]
    assert training.class_names == held_out.class_names == tuple("abcdef")
    assert sorted(values(training) + values(held_out)) == list(range(51))
    assert both(tmp_path, **options) == (values(training), values(held_out))  # the same each time


def test_few_images_and_unreadable_ones_do_not_stop_a_run(tmp_path, caplog):
    fill(tmp_path / "pics", numbered(5))
    assert both(tmp_path) == ([0, 1, 2, 3], [4])
    (tmp_path / "pics/04.png").write_bytes(b"no image")
    assert both(tmp_path) == ([0, 1, 2], [3])
    for name in ("00.png", "01.png", "03.png"):
        (tmp_path / "pics" / name).unlink()
    assert both(tmp_path) == ([2], [2])
    assert "pics has no image to spare: 02.png is trained on and held out" in caplog.text
    (tmp_path / "pics/04.png").unlink()
    assert both(tmp_path) == ([2], [2])
    fill(tmp_path / "pics", numbered(20))
    for name in ("09.png", "19.png"):
        (tmp_path / "pics" / name).write_bytes(b"no image")
    training, held_out = both(tmp_path)
    assert held_out == [18] and training == [k for k in range(18) if k != 9]


def test_a_class_of_one_image_keeps_it(tmp_path, caplog):
    fill(tmp_path / "pics", ["a/0.png", "b/0.png", "b/1.png", "c/0.png"])
    assert both(tmp_path, classes=True, num_classes=3) == ([0, 1, 3], [2])
    (tmp_path / "pics/b/1.png").unlink()
    assert both(tmp_path, classes=True, num_classes=3) == ([0, 1, 3], [3])
    assert "pics has no image to spare: 0.png is trained on and held out" in caplog.text


def test_a_run_on_two_images_with_alpha(tmp_path):
    for name in numbered(2):
        save(tmp_path / "pics" / name)
        Image.open(tmp_path / "pics" / name).convert("RGBA").save(tmp_path / "pics" / name)
    options = ["data=folder", f"data.root={tmp_path / 'pics'}", "data.image_size=8", f"dataroot={tmp_path / 'data'}"]
    assert train(tiny_config(*options, "data.num_channels=4"), tmp_path / "run", CPU) == 0
    drawn = np.load(tmp_path / "run/samples/iter_2/sample_0.npy")
    assert drawn.shape[0] == 20 and 4 in drawn.shape[1:]
    pixels = np.array([[[[200, 100, 0, 0], [200, 100, 0, 255]]]], np.uint8)  # seen on white, kept as it is
    assert grid(pixels)[12, [12, 32]].tolist() == [[255] * 3, [200, 100, 0]]
    save_each(pixels, tmp_path / "each", 0)
    assert np.array_equal(read_image(tmp_path / "each/000000.png", None, 4), pixels[0])


def test_numbers_in_names_count_as_numbers():
    names = ["10", "9", "1", "img2", "img10", "img1", "b", "a10c", "a9c", "02", "2", "-1"]
    ordered = ["1", "02", "2", "9", "10", "-1", "a9c", "a10c", "b", "img1", "img2", "img10"]
    assert sorted(names, key=natural_order) == ordered


def test_the_run_records_the_names_of_its_classes_and_labels_go_by_them(tmp_path, script):
    names = ["0", "1", "2", "9", "10", "café noir"]
    fill(tmp_path / "pics", [f"{name}/{k}.png" for name in names for k in range(3)])
    arguments = ["data=folder", "data.root=pics", "data.image_size=8", "data.classes=true", "dataroot=data"]
    summary = script(
        "run_train.py", *TINY, *arguments, "data.num_classes=6", "training.n_iters=0", "hydra.run.dir=summary"
    )
    assert summary.returncode == 0, summary.stderr
    for number, name in enumerate(names):
        assert f"class {number}: {name}, {2 if number == 2 else 3} images to train on" in summary.stderr
    with pytest.raises(InputError, match=r"num_classes=5, but .* has 6 folders of images: 0, 1, 2, 9, 10, café noir$"):
        load(tmp_path, classes=True, num_classes=5)
    options = [*arguments, "data.num_classes=6", f"data.root={tmp_path / 'pics'}", f"dataroot={tmp_path / 'data'}"]
    cfg = tiny_config(*options)
    train(cfg, tmp_path / "run", CPU)
    assert load_config(tmp_path / "run").data.class_names == names
    drawn = script(
        "run_vis.py", "load_dir=run", "label=['café noir','10',1]", "eval.batch_size=3", "sampling.steps=2",
        "device=cpu", "hydra.run.dir=vis",
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    assert np.load(tmp_path / "vis/images/samples_0.npz")["labels"].tolist() == [5, 4, 1]
    unknown = script("run_vis.py", "load_dir=run", "label='cafe noir'", "device=cpu")
    assert unknown.returncode == 1 and unknown.stderr.count("\n") == 1
    known = "the classes of this network are 0 to 5, -1 for none, called 0, 1, 2, 9, 10, café noir"
    assert f"label=cafe noir: {known}; did you mean café noir?" in unknown.stderr
    for layout, out in (("safetensors", "one.safetensors"), ("published", "theirs")):
        export(tmp_path / "run", tmp_path / out, layout)
        assert load_pretrained(tmp_path / out)[1].data.class_names == names
    # The same command resumes with the recorded names, also when the folders have changed.
    fill(tmp_path / "pics", ["100/0.png"])
    shutil.rmtree(tmp_path / "pics/0")
    with pytest.raises(InputError, match=r"pics/100/0.png is of class 100, but data.class_names has 0, 1, 2, 9, 10, c"):
        train(tiny_config(*options, "training.n_iters=3"), tmp_path / "run", CPU)


def test_labels_of_a_run_whose_names_are_numbers(caplog):
    names = ["1", "2", "3"]
    assert resolve_labels(["1", 1, -1], 0, 3, names) == [0, 1, -1]
    assert "label=1: class number 1 is called 2; label='\"1\"' is the one called so" in caplog.text
    with pytest.raises(InputError, match=r"label=3: .* called 1, 2, 3; label='\"3\"' is the one called so"):
        resolve_labels(3, 0, 3, names)
    assert resolve_labels("cat", 0, 2, ["dog", "cat"]) == [1]
    with pytest.raises(InputError, match=r"label=cat: the classes of this network are 0 to 2, -1 for none$"):
        resolve_labels("cat", 0, 3, ["dog", "cat"])  # names of another number of classes are none
    with pytest.raises(InputError, match=r"label=True: the classes"):
        resolve_labels(True, 0, 2, ["dog", "cat"])


def test_classes_whose_names_the_command_line_reads_as_values(caplog):
    names = ["true", "False", "null", "1e3", "NaN", "cat"]

    def typed(text):
        overrides = OverridesParser.create().parse_override(f"label={text}")
        return resolve_labels(overrides.value(), 0, len(names), names)

    for name in ("true", "False", "1e3", "NaN"):
        with pytest.raises(InputError, match=rf"called true, .*, cat; label='\"{name}\"' is the one called so$"):
            typed(name)
    with pytest.raises(InputError, match=r"label=None: .*; label='\"null\"' is the one called so$"):
        typed("[cat,null]")
    assert not caplog.text and typed("null") == []
    assert caplog.messages == ["label=null: random classes are drawn; label='\"null\"' is the one called so"]
    assert [typed(f"'{name}'")[0] for name in names] == list(range(6))
    with pytest.raises(InputError, match=r"cat, True; label='\"true\"' or label='\"True\"' is the one called so$"):
        resolve_labels(True, 0, 3, ["true", "cat", "True"])
    caplog.clear()
    assert resolve_labels(None, 0, 0) == resolve_labels(None, 0, 3, ["a", "b", "None"]) == [] and not caplog.text


def test_a_run_from_before_names_were_recorded_keeps_its_numbers(tmp_path):
    """The classes are in the plain order of their names, "10" before "9", resumed or started again."""
    from training.data import load_splits
    from training.run_dir import resumed_config

    fill(tmp_path / "pics", [f"{name}/{k}.png" for name in ("9", "10") for k in range(3)])
    options = ["data=folder", f"data.root={tmp_path / 'pics'}", "data.image_size=8", f"dataroot={tmp_path / 'data'}"]
    options += ["data.classes=true", "data.num_classes=2"]
    cfg = tiny_config(*options)
    old = cfg.copy()
    OmegaConf.set_struct(old, False)
    for key in ("class_names", "background", "white"):
        del old.data[key]
    (tmp_path / "run/.hydra").mkdir(parents=True)
    (tmp_path / "run/.hydra/config.yaml").write_text(OmegaConf.to_yaml(old))
    assert load_splits(cfg, CPU)[0].class_names == ("9", "10")
    resumed = resumed_config(cfg, tmp_path / "run", [])
    assert load_splits(resumed, CPU)[0].class_names == ("10", "9")
    train(cfg, tmp_path / "run", CPU)
    assert load_config(tmp_path / "run").data.class_names == ["10", "9"]


def test_names_of_classes_that_a_configuration_cannot_hold(tmp_path, monkeypatch):
    for name, shown in (("${now:}", r"\$\{now:\}"), ("???", r"\?\?\?"), (os.fsdecode(b"caf\xe9"), r"caf\\udce9")):
        fill(tmp_path / "pics", [f"{name}/0.png", "b/0.png"])
        with pytest.raises(InputError, match=f"cannot be called {shown}, rename the folder"):
            load(tmp_path, classes=True, num_classes=2)
        shutil.rmtree(tmp_path / "pics")
    fill(tmp_path / "pics", ["yes/0.png", "null/0.png", "1e3/0.png", "a: b #c/0.png", "x\x1b[2J/0.png", "~/0.png"])
    with monkeypatch.context() as patch:
        patch.setattr("datasets.folders.LONGEST_NAMES", 3)
        images = load(tmp_path, classes=True, num_classes=6)
        assert images.class_names == () and sorted(images.labels.tolist()) == [0, 1, 2, 3, 4, 5]
    names = load(tmp_path, classes=True, num_classes=6).class_names
    again = OmegaConf.create(OmegaConf.to_yaml({"names": list(names)}))
    assert sorted(names) == sorted(path.name for path in (tmp_path / "pics").iterdir()) and again.names == list(names)


def test_links_never_lead_upwards_nor_twice_to_the_same(tmp_path, caplog):
    pics = tmp_path / "pics"
    fill(pics, ["cat/0.png", "cat/1.png", "dog/0.png"])
    fill(tmp_path, ["elsewhere/0.png", "elsewhere/1.png", "one.png"], 10)
    for link, target in {
        "up": "..", "cat/top": "../../pics", "dog/itself": ".", "all": "/", "a_cat": "cat", "zoo": "../elsewhere",
        "zoo2": "../elsewhere", "gone.png": "nowhere.png", "ring.png": "ring.png", "dog/9.png": "../cat/0.png",
        "dog/8.png": "../../one.png", "dog/7.png": "../../one.png",
    }.items():  # fmt: skip
        (pics / link).symlink_to(target)
    (tmp_path / "elsewhere/back").symlink_to(pics)
    (tmp_path / "elsewhere/loop").symlink_to("loop2")
    (tmp_path / "elsewhere/loop2").symlink_to("loop")
    files = [str(path.relative_to(pics)) for path in find_images(pics)]
    assert files == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/7.png", "zoo/0.png", "zoo/1.png"]
    assert "4 links that lead nowhere (gone.png, ring.png, zoo/loop, ...)" in caplog.text
    assert "9 links to what is there already or to a folder above (a_cat, all, cat/top, ...)" in caplog.text
    training, held_out = both(tmp_path)
    assert sorted(training + held_out) == [0, 1, 2, 10, 11, 12]


def test_links_between_splits_do_not_make_them_overlap(tmp_path):
    pics = tmp_path / "pics"
    fill(pics / "train", numbered(3))
    fill(pics / "valid", ["9.png"], 9)
    (pics / "valid/0.png").symlink_to(pics / "train/00.png")
    (pics / "valid/more").symlink_to(pics / "train")
    assert both(tmp_path) == ([0, 1, 2], [9])
    shutil.rmtree(pics)
    fill(tmp_path / "store/train", numbered(3))
    fill(tmp_path / "store/valid", ["9.png"], 9)
    pics.mkdir()
    for name in ("train", "valid"):  # the usual way to have a data set on another disk
        (pics / name).symlink_to(tmp_path / "store" / name)
    assert both(tmp_path) == ([0, 1, 2], [9])
    (pics / "valid").unlink()
    (pics / "valid").symlink_to(tmp_path / "store/train")
    assert both(tmp_path) == ([0, 1], [2])


def test_pipes_sockets_and_devices_are_never_opened(tmp_path, caplog):
    pics = tmp_path / "pics"
    fill(pics, numbered(3))
    os.mkfifo(pics / "pipe.png")
    (pics / "zero.png").symlink_to("/dev/zero")
    (pics / "link.png").symlink_to("pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(pics / "socket.png"))
    (pics / "folder.png").mkdir()
    signal.alarm(20)  # what opens a pipe waits for ever
    try:
        assert both(tmp_path) == ([0, 1], [2])
    finally:
        signal.alarm(0)
        server.close()
    assert "4 pipes, sockets or devices (link.png, pipe.png, socket.png, ...)" in caplog.text


def test_a_folder_that_cannot_be_read_is_left_out(caplog):
    """Run as a user who is not root, in a folder that anyone can reach."""
    top = Path(tempfile.mkdtemp())
    try:
        fill(top / "pics", ["a/0.png", "a/1.png", "b/0.png", "lost+found/0.png", "c/0.png"])
        (top / "pics/lost+found").chmod(0)
        (top / "pics/c").chmod(0o444)  # its names can be read, but no file
        (top / "pics/b/0.png").chmod(0)
        for folder in (top, top / "data"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)
        Image.init()  # the decoders themselves may be out of that user's reach
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            training, held_out = (load(top, part) for part in (True, False))
        finally:
            os.seteuid(user)
        assert (values(training), values(held_out)) == ([0], [1])
        assert "1 folders that cannot be read (lost+found)" in caplog.text
        listed = next((top / "data/cache").glob("*-train.unreadable.txt")).read_text()
        assert [line.split("\t")[0] for line in listed.splitlines()] == ["b/0.png", "c/0.png"]
        assert "Permission denied" in listed
    finally:
        for path in (top / "pics/lost+found", top / "pics/c"):
            path.chmod(0o755)
        shutil.rmtree(top)


def test_a_link_into_a_folder_that_cannot_be_listed_is_followed():
    """Run as a user who is not root: the folder can be entered but not listed, and its images can be read."""
    top = Path(tempfile.mkdtemp())
    try:
        fill(top / "pics", ["0.png", "closed/1.png"])
        (top / "pics/link.png").symlink_to("closed/1.png")
        (top / "pics/folder").symlink_to("closed")
        top.chmod(0o755)
        (top / "pics/closed").chmod(0o711)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        else:
            (top / "pics/closed").chmod(0o311)
        try:
            found = scan_folder(top / "pics")
        finally:
            os.seteuid(user)
        assert [path.name for path in found.files] == ["0.png", "link.png"]
        unlisted = [str(top / "pics" / name) for name in ("closed", "folder")]
        assert found.left_out == {"folders that cannot be read": unlisted}
    finally:
        (top / "pics/closed").chmod(0o755)
        shutil.rmtree(top)


def test_each_start_searches_the_folder_once(tmp_path, monkeypatch):
    from training.data import load_splits

    scanned = []

    def counted_scan(*args, **options):
        scanned.append(args)
        return scan_folder(*args, **options)

    monkeypatch.setattr("datasets.folders.scan_folder", counted_scan)
    fill(tmp_path / "pics", numbered(10))
    options = ["data=folder", f"data.root={tmp_path / 'pics'}", "data.image_size=8", f"dataroot={tmp_path / 'data'}"]
    cfg = tiny_config(*options, "data.num_channels=3")
    for n in (10, 15):
        fill(tmp_path / "pics", numbered(n))
        assert [values(split) for split in load_splits(cfg, CPU)] == [[k for k in range(n) if k != 9], [9]]
    assert len(scanned) == 2
    (tmp_path / "pics/14.png").unlink()
    assert both(tmp_path)[0] == [k for k in range(14) if k != 9] and len(scanned) == 4


def test_files_of_other_kinds_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fill(tmp_path / "pics", [*numbered(3), "._0.png", ".thumbs/0.png"])
    for name in ("labels.csv", "a.heic", "b.HEIC", "README", "notes.txt"):
        (tmp_path / "pics" / name).touch()
    load(tmp_path)
    assert "5 files of other kinds ignored: 2 .heic, 1 " in caplog.text and "1 without a suffix" in caplog.text
    assert "1 hidden images (._0.png)" in caplog.text
    shutil.rmtree(tmp_path / "pics")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/a.heic").touch()
    with pytest.raises(
        InputError, match=r"has no images to train on \(.png, .jpg, ...; 0 left out, other kinds of files: 1 .heic\)"
    ):
        load(tmp_path)


def test_what_the_scripts_wrote_is_never_trained_on(tmp_path, script, caplog):
    """With data.root=. all output is below the folder of images."""
    fill(tmp_path, [f"mine/{name}" for name in numbered(20)])
    arguments = [*TINY, "data=folder", "data.root=.", "data.image_size=8", "data.num_channels=3", "dataroot=datasets"]
    once = script("run_train.py", *arguments, "training.n_iters=2", "training.snapshot_freq=1")
    assert once.returncode == 0, once.stderr
    run = next((tmp_path / "runs/folder").glob("*/*"))
    assert list(run.glob("samples/*/sample_0.png")) and (run / "loss.png").exists()
    assert script("run_train.py", *arguments, "training.n_iters=0", "hydra.run.dir=summary").returncode == 0
    drawing = ["sampling.steps=2", "eval.batch_size=4", "device=cpu"]
    vis = script("run_vis.py", f"load_dir={run}", *drawing, "eval.save_images=true", "sampling.trajectory=2")
    assert vis.returncode == 0, vis.stderr
    (tmp_path / "imagenet-64x64").mkdir()
    fill(tmp_path / "datasets/imagenet-64x64/train", ["0.png"])
    evaluated = tmp_path / "eval/x"
    fill(evaluated, ["images/samples_0.png"])
    (evaluated / "eval.yaml").write_text("root: .\nload_dir: x\n")
    (tmp_path / "link").symlink_to(run / "samples")
    again = script("run_train.py", f"resume={run}", "training.n_iters=3")
    assert again.returncode == 0, again.stderr
    assert "18 images 3x8x8 to train on, 2 held out" in again.stderr
    assert "caching" not in again.stderr  # the same images as at first
    assert "folders or files that this project wrote (datasets/cache, datasets/imagenet-64x64, eval/x, " in again.stderr
    top = scan_folder(tmp_path, skip_outputs=True, outputs=[tmp_path / "datasets/imagenet-64x64"])
    assert [path.parent.name for path in top.files] == ["mine"] * 20
    # a run among the images themselves
    for name in ("loss.png", "data.png", "samples/iter_2/sample_0.png"):
        save(run / name)
    save(run / "own.png")
    save(run / "images/own.png")
    assert [str(path.relative_to(run)) for path in scan_folder(run, skip_outputs=True).files] == [
        "images/own.png",
        "own.png",
    ]
    for folder in (evaluated, next((tmp_path / "vis").glob("*/*/images"))):
        assert scan_folder(folder, skip_outputs=True).files == []
    # and what only looks like it
    fill(tmp_path / "theirs", ["a/0.png", "data.png"])
    (tmp_path / "theirs/eval.yaml").write_text("metrics: [fid]\n")
    (tmp_path / "theirs/.hydra").mkdir()
    (tmp_path / "theirs/.hydra").rmdir()
    for other in ("", "epoch 1, loss 0.3\n", "[2026-01-31 23:59:59,123][main][INFO] - by Hydra alone\n"):
        (tmp_path / "theirs/logs").write_text(other)
        assert len(scan_folder(tmp_path / "theirs", skip_outputs=True).files) == 2
    (tmp_path / "theirs/logs").write_text((tmp_path / "summary/logs").read_text() + other)
    assert len(scan_folder(tmp_path / "theirs", skip_outputs=True).files) == 1


def test_dark_folders_of_16_bits_are_refused_without_white(tmp_path):
    (tmp_path / "pics").mkdir()
    for k in range(4):
        Image.fromarray(np.full((8, 8), 1000 * k + 1000, np.uint16)).save(tmp_path / f"pics/{k}.png")
    message = r"3 images of 16 bits in .*pics are nearly black: no value is above 3000 of 65535; say .* data.white=4095"
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    assert not list((tmp_path / "data/cache").glob("*.json"))
    assert both(tmp_path, white=4000) == ([64, 128, 191], [255])
    assert both(tmp_path, white=65535) == ([3, 7, 11], [15])
    with pytest.raises(
        InputError, match=r"none of the 3 images of pics-.* can be read, such as 0.png: its values of 16 "
    ):
        load(tmp_path, white=900)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "pics/00.png")  # one is as bright as they can be
    assert both(tmp_path) == ([3, 156, 7, 11], [15])


def test_dark_folders_of_floating_point_are_refused_without_white(tmp_path):
    pics = tmp_path / "pics"
    pics.mkdir()
    for k, value in enumerate([0.0001, 0.0005, 0.0007, 0.0007]):
        Image.fromarray(np.full((8, 8), value, np.float32)).save(pics / f"{k}.tif")
    message = r"the 3 images of floating point in .*pics are nearly black: no value is above 0.0007 of 1; say which"
    with pytest.raises(InputError, match=rf"{message} value is white, such as data.white=0.0007, or data.white=1 if"):
        load(tmp_path)
    assert not list((tmp_path / "data/cache").glob("*.json"))
    assert both(tmp_path, white=0.0007) == ([36, 182, 255], [255])  # the value itself, which floats of 32 bits round
    assert both(tmp_path, white=1) == ([0, 0, 0], [0])
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(pics / "00.tif")
    assert both(tmp_path) == ([0, 128, 0, 0], [0])
    for path in pics.iterdir():
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path)
    with pytest.raises(InputError, match=r"no value is above 0.0 of 1; say data.white=1 if that is right$"):
        load(tmp_path)


def test_the_background_is_an_option_and_logged_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "pics").mkdir()
    for k in range(12):
        Image.fromarray(np.zeros((8, 8, 4 if k < 5 else 3), np.uint8)).save(tmp_path / f"pics/{k:02}.png")
    assert both(tmp_path) == ([255] * 5 + [0] * 6, [0])
    assert caplog.text.count("5 images have transparent parts, composited on data.background=white") == 1
    assert values(load(tmp_path, background="#102030")) == [16] * 5 + [0] * 6
    assert values(load(tmp_path)) == [255] * 5 + [0] * 6  # each has a cache of its own
    four = load(tmp_path, num_channels=4)
    assert four.data.shape == (11, 4, 8, 8) and four.data[:, 3, 0, 0].tolist() == [0] * 5 + [255] * 6
    with pytest.raises(
        InputError, match=r"data.num_channels=2: the images of a folder can have 1 \(grey\), 3 \(RGB\), 4"
    ):
        load(tmp_path, num_channels=2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data.background=nocolour", "data.background=nocolour: need a colour such as white"),
        ("data.background='#ff000080'", "data.background=#ff000080: need a colour"),
        ("data.white=0", "data.white=0: need a number, more than 0"),
        ("data.class_names=[a,a]", "data.class_names=['a', 'a']: need different names"),
    ],
)
def test_options_of_a_folder_are_checked(tmp_path, option, message):
    from training.options import check_train

    with pytest.raises(InputError) as caught:
        check_train(tiny_config("data=folder", "data.root=x", option), 1)
    assert message in str(caught.value)


def test_a_fingerprint_is_of_pixels_and_labels_and_not_of_files(tmp_path):
    fill(tmp_path / "pics", [f"{name}/{k}.png" for name in "ab" for k in range(3)])
    options = {"classes": True, "num_classes": 2}
    first = load(tmp_path, **options)
    assert len(first.fingerprint) == 64 and first.fingerprint != load(tmp_path, False, **options).fingerprint
    (tmp_path / "pics").rename(tmp_path / "moved")
    for path in find_images(tmp_path / "moved"):
        os.utime(path)
    moved = {"root": str(tmp_path / "moved"), **options}
    assert load(tmp_path, **moved).fingerprint == first.fingerprint
    assert load(tmp_path, root=str(tmp_path / "moved")).fingerprint != first.fingerprint  # without labels
    save(tmp_path / "moved/a/1.png", 77)
    changed = load(tmp_path, **moved)
    assert changed.fingerprint not in ("", first.fingerprint)
    held = changed.data.numpy().tobytes() + changed.labels.numpy().tobytes() + repr(tuple(changed.data.shape)).encode()
    assert changed.fingerprint == hashlib.sha256(held).hexdigest()  # as runs have recorded it
    for path in (tmp_path / "data/cache").glob("moved-*-train.json"):
        path.write_text(json.dumps({"made_of": json.loads(path.read_text())["made_of"]}))
    assert load(tmp_path, **moved).fingerprint == changed.fingerprint


EVIL = "a\x1b[31m\x07\u202egnp\u2066\n.png"


def test_names_of_files_reach_no_terminal_raw(tmp_path, script):
    fill(tmp_path / "pics", numbered(12))
    (tmp_path / "pics" / EVIL).write_bytes(b"no image")
    (tmp_path / "pics" / EVIL.replace("a", "b")).symlink_to("nowhere")
    (tmp_path / "pics" / EVIL.replace("png", "\x1b[2J")).touch()
    (tmp_path / "pics" / os.fsdecode(b"\xff\x9b31m.png")).write_bytes(b"no image")
    arguments = [*TINY, "data=folder", "data.root=pics", "data.image_size=8", "dataroot=data", "training.n_iters=0"]
    result = script("run_train.py", *arguments, "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    listed = next((tmp_path / "data/cache").glob("*.unreadable.txt")).read_text()
    assert r"a\x1b[31m\x07\u202egnp\u2066 .png" in result.stderr and r"b\x1b[31m" in result.stderr
    assert r"\udcff\udc9b31m.png" in listed and r"\x1b[31m" in listed
    for text in (result.stderr, result.stdout, listed, (tmp_path / "out/logs").read_text()):
        assert all(line.replace("\t", "").isprintable() for line in text.split("\n")), ascii(text)
    save(tmp_path / "classes" / EVIL / "0.png")
    save(tmp_path / "classes/alone.png")
    arguments[arguments.index("data.root=pics")] = "data.root=classes"
    result = script("run_train.py", *arguments, "data.classes=true", "data.num_classes=3")
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and result.stderr[:-1].isprintable()


def test_printable_text():
    assert printable("naïve\u3000日本 ok") == "naïve\u3000日本 ok"
    assert printable("a\r\nb\tc\x85d") == "a b c d"
    assert printable("\x00\x1b\x7f\x9b\u200e\u200f\u202a\u202e\u2066\u2069\u2028\ud800") == (
        r"\x00\x1b\x7f\x9b\u200e\u200f\u202a\u202e\u2066\u2069\u2028\ud800"
    )

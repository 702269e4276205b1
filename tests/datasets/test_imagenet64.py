"""Preparation of ImageNet at 64x64 from small folders: layouts, classes, odd files, and resuming after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.io
from PIL import Image

from datasets.compile_imagenet64 import compile_imagenet, read_truth
from tests.conftest import ROOT, environment
from utils.errors import InputError
from utils.locks import exclusive

RNG = np.random.default_rng(0)
IDS = ["n01440764", "n01443537", "n02979186"]


def save(path, height=70, width=90, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def imagenet(root, flat=False, each=3):
    """Make train with some images of each class, and val with two of each: val image k is of class k mod 3."""
    for wnid in reversed(IDS):
        for k in range(each):
            save(root / f"train/{wnid}/{wnid}_{k}.JPEG")
    for k in range(6):
        folder = root / "val" if flat else root / "val" / IDS[k % 3]
        save(folder / f"ILSVRC2012_val_{k + 1:08}.JPEG")
    return root


def labels(folder):
    return json.loads((folder / "dataset.json").read_text())["labels"]


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_by_class(tmp_path):
    root, out = imagenet(tmp_path / "imagenet"), tmp_path / "out"
    compile_imagenet(root, out, 64, workers=1)
    names = [f"00000/img{k:08}.png" for k in range(9)]
    assert labels(out / "train") == [[name, k // 3] for k, name in enumerate(names)]
    assert labels(out / "valid") == [[names[k], k // 2] for k in range(6)]
    for k, name in enumerate(names):
        source = root / f"train/{IDS[k // 3]}/{IDS[k // 3]}_{k % 3}.JPEG"
        with Image.open(source) as image, Image.open(out / "train" / name) as png:
            middle = image.crop((10, 0, 80, 70)).resize((64, 64), Image.Resampling.LANCZOS)
            assert png.mode == "RGB" and np.array_equal(np.asarray(png), np.asarray(middle))


KAGGLE = "ImageId,PredictionString\n" + "".join(
    f"ILSVRC2012_val_{k + 1:08},{IDS[k % 3]} 1 2 3 4 {IDS[0]} 5 6 7 8\n" for k in reversed(range(6))
)
LINES = "".join(f"ILSVRC2012_val_{k + 1:08}.JPEG {IDS[k % 3]}\n" for k in range(6))
NUMBERS = "".join(f"{[700, 2, 31][k % 3]}\n" for k in range(6))  # in the kit's own order, not that of the ids


def write_meta(path):
    rows = [(700, IDS[0]), (2, IDS[1]), (31, IDS[2]), (1001, "n00001740")]
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    scipy.io.savemat(path, {"synsets": synsets})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_val_solution.csv", KAGGLE),
        ("val_labels.txt", LINES),
        ("val_labels.csv", "".join(f'"{name}","{wnid}"\n' for name, wnid in map(str.split, LINES.splitlines()))),
        ("ILSVRC2012_validation_ground_truth.txt", NUMBERS),
    ],
)
def test_a_flat_folder_with_its_ground_truth(tmp_path, name, text):
    root = imagenet(tmp_path / "imagenet", flat=True)
    with pytest.raises(InputError, match=r"val has no folder for each class.*say --val-labels FILE"):
        compile_imagenet(root, tmp_path / "out", 64, workers=1)
    (root / name).write_text(text)
    if text == NUMBERS:
        with pytest.raises(InputError, match=r"only the kit's meta.mat tells"):
            compile_imagenet(root, tmp_path / "out", 64, workers=1)
        write_meta(root / "meta.mat")
    compile_imagenet(root, tmp_path / "out", 64, workers=1)
    assert [label for _, label in labels(tmp_path / "out/valid")] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", r"truth.txt has 2 lines, .*val 6 images"),
        (LINES.replace("00000004.JPEG", "00000009.JPEG"), r"no line for .*val_00000004.JPEG, 1 of 6"),
        (LINES.replace(IDS[1], "n09999999"), r"00000002.JPEG is n09999999, of which train has no folder"),
        ("ILSVRC2012_val_00000001\n", "need a line with a name and a WordNet id"),
        (LINES + f"ILSVRC2012_val_00000001 {IDS[2]}\n", "more than one class for ILSVRC2012_val_00000001"),
    ],
)
def test_a_ground_truth_that_does_not_fit_is_named(tmp_path, text, message):
    root = imagenet(tmp_path / "imagenet", flat=True, each=1)
    (tmp_path / "truth.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_truth(tmp_path / "truth.txt", sorted((root / "val").iterdir()), {wnid: k for k, wnid in enumerate(IDS)})


def test_odd_files_are_read_and_damaged_ones_listed(tmp_path, capsys):
    root = imagenet(tmp_path / "imagenet")
    folder = root / "train" / IDS[0]
    Image.new("CMYK", (80, 80), (255, 0, 0, 0)).save(folder / "a_cmyk.JPEG", "JPEG", quality=95)
    Image.new("L", (80, 80), 77).save(folder / "b_grey.JPEG", "JPEG")
    save(folder / "c_png.JPEG", format="PNG")
    save(folder / "d_thin.JPEG", 1, 100, format="PNG")
    gradient = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    Image.fromarray(gradient).save(folder / "e_turned.JPEG", "JPEG", quality=100, exif=exif)
    whole = (folder / f"{IDS[0]}_0.JPEG").read_bytes()
    (folder / "f_cut.JPEG").write_bytes(whole[: len(whole) // 2])
    (folder / "g_empty.JPEG").touch()
    (folder / "h_text.JPEG").write_text("no image")

    compile_imagenet(root, tmp_path / "out", 64, workers=1)
    made = tmp_path / "out/train"
    listing = (made / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listing] == [
        f"{IDS[0]}/{n}" for n in ("f_cut.JPEG", "g_empty.JPEG", "h_text.JPEG")
    ]
    assert f"3 of 17 files left out, listed in {made / 'unreadable.txt'}" in capsys.readouterr().err
    assert [int(name[9:17]) for name, _ in labels(made)] == [0, 1, 2, 3, 4, *range(8, 17)]  # sorted: odd ones first
    cmyk, grey, _, thin, rotated = (np.asarray(Image.open(made / f"00000/img{k:08}.png")).astype(int) for k in range(5))
    assert np.abs(cmyk - [0, 255, 255]).max() <= 3
    assert np.abs(grey - 77).max() <= 1
    assert (thin == thin[0, 0]).all()
    assert np.abs(rotated - gradient.transpose(1, 0, 2)).max() <= 3  # left is now above


SCRIPT = [sys.executable, "compile_imagenet64.py"]


def run(*arguments):
    return subprocess.run(
        [*SCRIPT, *map(str, arguments)], cwd=ROOT / "datasets", env=environment(), capture_output=True, text=True
    )


def many(root, count=2500):
    """Make a class of images that take some seconds, image k in a colour that encodes k."""
    for k, path in enumerate(
        [*(root / f"train/{IDS[0]}/{k:05}.JPEG" for k in range(count)), root / f"val/{IDS[0]}/0.JPEG"]
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 300), colour(k)).save(path, "PNG")
    return root


def colour(k):
    return (k % 256, k // 256, 7)


@pytest.mark.slow(28)
def test_compilation_resumes_after_a_kill_and_an_interrupt(tmp_path):
    """Start the script as a user does, from its folder, with two workers."""
    root, out = many(tmp_path / "imagenet"), tmp_path / "out"
    for count, signum, code in ((300, signal.SIGKILL, -9), (700, signal.SIGINT, 130)):
        process = subprocess.Popen(
            [*SCRIPT, root, "--out", out, "--workers", "2"], cwd=ROOT / "datasets", env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0,
        )  # fmt: skip
        while process.poll() is None and len(list(out.glob("train/*/img*.png"))) < count:
            time.sleep(0.01)
        os.kill(process.pid, signum) if signum == signal.SIGKILL else os.killpg(process.pid, signum)
        said = process.communicate(timeout=60)[0]  # ends when the last process that could write there has
        assert process.returncode == code
        if signum == signal.SIGINT:
            assert said == "interrupted: run it again to resume\n"
        assert not (out / "train/dataset.json").exists()
    with exclusive(out, ""):
        busy = run(root, "--out", out)
    assert busy.returncode == 1 and "another process compiles there" in busy.stderr
    done = len(list(out.glob("train/*/img*.png")))
    assert 700 <= done < 2500
    result = run(root, "--out", out)
    assert result.returncode == 0, result.stderr
    assert f"2500 images, {done} of them from before" in result.stdout
    files = tree(out)
    assert len([name for name in files if name.endswith(".png")]) == 2501
    for k in range(2500):
        with Image.open(out / f"train/{k // 1000:05}/img{k:08}.png") as image:
            assert image.getcolors() == [(64 * 64, colour(k))], k
    assert not [name for name in files if name.endswith(".tmp")]
    assert labels(out / "train") == [[f"{k // 1000:05}/img{k:08}.png", 0] for k in range(2500)]
    again = run(root, "--out", out)
    assert again.returncode == 0 and again.stdout.count("is done already") == 2
    (root / f"train/{IDS[0]}/00007.JPEG").unlink()
    other = run(root, "--out", out)
    assert other.returncode == 1 and "was begun with other images, labels or size: choose another --out" in other.stderr
    assert tree(out) == files


def test_bad_folders_are_one_line(tmp_path):
    for arguments, message in [((tmp_path,), "holds no folder train"), ((tmp_path, "--workers", 0), "--workers 0")]:
        result = run(*arguments)
        assert result.returncode != 0 and message in result.stderr and "Traceback" not in result.stderr
    (tmp_path / "train" / IDS[0]).mkdir(parents=True)
    with pytest.raises(InputError, match="train holds no images"):
        compile_imagenet(tmp_path, tmp_path / "out", 64, workers=1)
    assert not (tmp_path / "out").exists()

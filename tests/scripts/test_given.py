"""run_vis.py given=FILE mask=FILE: known pixels and values stay, the others are drawn."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import TINY

DRAW = ["load_dir=RUN", "device=cpu", "eval.batch_size=6", "eval.particles=4", "sampling.steps=3"]


@pytest.fixture(scope="module")
def place(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    result = scripts(folder, "run_train.py", *TINY, "hydra.run.dir=RUN")
    assert result.returncode == 0, result.stderr
    images = (load_digits().images[:4] * (255 / 16)).round().astype(np.uint8)[..., None]
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    np.save(folder / "digits.npy", images)
    np.savez(folder / "digits.npz", samples=images)
    np.save(folder / "mask.npy", mask)
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(images[0, ..., 0]).save(folder / "digit.png")
    return folder


@pytest.fixture
def draw(scripts, place):
    def run(out, *args):
        return scripts(place, "run_vis.py", *DRAW, f"hydra.run.dir={out}", *args)

    return run


def samples(place, out):
    return np.load(place / out / "images/samples_0.npz")["samples"]


def test_known_pixels_stay_and_the_others_are_drawn(place, draw):
    """Draw six samples of four images, alone and in two processes; a sample is a function of its number."""
    result = draw("one", "given=digits.npz", "mask=mask.png", "label=3")
    assert result.returncode == 0, result.stderr
    images, drawn = np.load(place / "digits.npy"), samples(place, "one")
    rows = [0, 1, 2, 3, 0, 1]
    assert drawn.dtype == np.uint8 and np.array_equal(drawn[:, :4], images[rows][:, :4])
    assert not np.array_equal(drawn[0, 4:], drawn[4, 4:]) and len(np.unique(drawn[:, 4:])) > 50
    for name in ("samples_0.png", "given_0.png"):
        assert Image.open(place / "one/images" / name).size == (128, 86)  # 3 x 2 tiles of 40 pixels
    result = draw("two", "given=digits.npy", "mask=mask.npy", "label=3", "ngpus=2")
    assert result.returncode == 0, result.stderr
    assert np.abs(samples(place, "two").astype(int) - drawn).max() <= 1


def test_one_image_file_and_a_mask_for_each(place, draw):
    masks = np.zeros((4, 8, 8), bool)
    masks[0, :, :3] = masks[1:, 5] = True
    np.save(place / "masks.npy", masks)
    assert draw("file", "given=digit.png", "mask=mask.png").returncode == 0
    image = np.load(place / "digits.npy")[0]
    assert (samples(place, "file")[:, :4] == image[:4]).all()
    assert draw("each", "given=digits.npy", "mask=masks.npy").returncode == 0
    drawn, images = samples(place, "each"), np.load(place / "digits.npy")
    assert np.array_equal(drawn[:4][masks], images[masks]) and np.array_equal(drawn[0, :, :3], images[0, :, :3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["given=digits.npy"], "given=digits.npy: say what is known, mask=FILE"),
        (["mask=mask.npy"], "mask=mask.npy: say what is known there, given=FILE"),
        (["given=mask.npy", "mask=mask.npy"], "given=mask.npy has the shape (8, 8): need (N, 8, 8, 1)"),
        (["given=floats.npy", "mask=mask.npy"], "given=floats.npy holds float64 (2, 8, 8, 1): need images, uint8"),
        (["given=digits.npy", "mask=long.npy"], "mask=long.npy has the shape (3, 8, 8): need (8, 8, 1), or one for"),
        (["given=digits.npy", "mask=none.npy"], "given=digits.npy: no value is known"),
        (["given=digits.npy", "mask=absent.npy"], "absent.npy is neither a file nor a folder"),
        (["given=pickle.npy", "mask=mask.npy"], "given=pickle.npy holds object (1,): need numbers"),
        (["given=bad.png", "mask=mask.npy"], "given=bad.png cannot be read"),
        (["given=digits.npy", "mask=mask.npy", "sampling.method=ode"], "sampling.method=ode does not go with given="),
        (["given=digits.npy", "mask=mask.npy", "eval.particles=0"], "eval.particles=0: need an integer, at least 1"),
    ],
)
def test_bad_files_and_options_are_one_line(place, draw, arguments, message):
    np.save(place / "floats.npy", np.zeros((2, 8, 8, 1)))
    np.save(place / "long.npy", np.ones((3, 8, 8)))
    np.save(place / "none.npy", np.zeros((8, 8)))
    np.save(place / "pickle.npy", np.array([{}]), allow_pickle=True)
    (place / "bad.png").write_bytes(b"no image")
    result = draw("refused", *arguments)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and message in result.stderr, result.stderr
    assert not (place / "refused/images").exists()


@pytest.fixture(scope="module")
def table(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    x = np.random.default_rng(0).uniform(size=(200, 3)).astype(np.float64) * [10.0, 2.0, 1.0] - [0.0, 1.0, 0.0]
    x[::4, 0] = 0.0
    np.save(folder / "x.npy", x)
    training = [
        "data=array",
        "data.root=x.npy",
        "data.low=[0,-1,0]",
        "data.high=[10,1,1]",
        "model=mlp",
        "data.shape=[3]",
    ]
    training += ["training.n_iters=2", "training.batch_size=8", "training.log_freq=1", "training.eval_freq=2"]
    training += ["eval.batch_size=20", "sampling.steps=3", "device=cpu", "hydra.run.dir=RUN"]
    result = scripts(folder, "run_train.py", *training)
    assert result.returncode == 0, result.stderr
    given = np.array([[0.0, np.nan, 1 / 3], [np.nan, 0.1, np.nan]])
    np.save(folder / "given.npy", given)
    return folder


def test_a_table_keeps_its_values_exactly_in_its_units(table, scripts):
    result = scripts(table, "run_vis.py", *DRAW, "given=given.npy", "data.root=x.npy", "hydra.run.dir=out")
    assert result.returncode == 0, result.stderr
    drawn, given = samples(table, "out"), np.load(table / "given.npy")[[0, 1] * 3]
    known = ~np.isnan(given)
    assert Image.open(table / "out/images/samples_0.png").size == (690, 690)  # pairs of three columns, beside the data
    assert np.array_equal(drawn[known], given[known])  # not 0.33333334
    assert np.all((drawn >= [0, -1, 0]) & (drawn <= [10, 1, 1])) and len(np.unique(drawn[~known])) == 9
    result = scripts(table, "run_vis.py", *DRAW, "given=given.npy", "hydra.run.dir=alone")
    assert result.returncode == 0 and np.array_equal(samples(table, "alone"), drawn)
    figures = [(table / name / "images/samples_0.png").read_bytes() for name in ("out", "alone")]
    assert figures[0] != figures[1], "only the first shows the data"
    result = scripts(table, "run_vis.py", *DRAW, "given=given.npy", "data.root=gone.npy", "hydra.run.dir=gone")
    assert result.returncode == 1 and "data.root=gone.npy does not exist" in result.stderr
    np.save(table / "mask.npy", np.array([0, 1, 0]))
    result = scripts(table, "run_vis.py", *DRAW, "given=given.npy", "mask=mask.npy", "hydra.run.dir=refused")
    assert "given=given.npy is NaN at (0, 1), where mask=mask.npy says that it is known" in result.stderr
    np.save(table / "beyond.npy", np.array([[0.0, 1.5, np.nan]]))
    result = scripts(table, "run_vis.py", *DRAW, "given=beyond.npy", "hydra.run.dir=refused")
    assert "given=beyond.npy is 1.5 at (0, 1): need a number from -1 to 1" in result.stderr

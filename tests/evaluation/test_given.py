"""Known values of samples in the units of their data, and the data that figures show."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from datasets.units import Interval
from evaluation.given import read_given
from evaluation.images_dir import _data_of
from utils.errors import InputError


def test_a_float32_value_on_a_bound_is_within_it(tmp_path):
    values = np.array([[0.1, np.nan]], np.float32)  # as float32 more than 0.1
    np.save(tmp_path / "x.npy", values)
    given = read_given(str(tmp_path / "x.npy"), None, (2,), False, Interval([0.0] * 2, [0.1] * 2, [1.0] * 2))
    assert given.points[0, 0] == 1.0 and given.known.tolist() == [[True, False]]


def test_integers_are_given_as_such(tmp_path):
    units = Interval([0.0] * 2, [9.0] * 2, [1.0] * 2, levels=10)
    np.save(tmp_path / "x.npy", np.array([[3.0, np.nan], [2.5, 1.0]]))
    with pytest.raises(InputError, match=r"x.npy is 2.5 at \(1, 0\): need an integer"):
        read_given(str(tmp_path / "x.npy"), None, (2,), False, units)
    np.save(tmp_path / "x.npy", np.array([[3.0, np.nan]]))
    given = read_given(str(tmp_path / "x.npy"), None, (2,), False, units)
    assert given.restore(np.array([[1, 2]]), range(1)).tolist() == [[3, 2]]


def test_nothing_is_downloaded_for_a_figure(tmp_path, monkeypatch):
    """The configuration may be from somebody else: it has no say in what is downloaded, and to where."""
    monkeypatch.chdir(tmp_path)
    data = {"dataset": "cifar10", "shape": [3], "classes": False, "num_classes": 1}
    with pytest.raises(InputError, match=r"data.root=x.npy: only for a run with data=array"):
        _data_of(OmegaConf.create({"data": data, "dataroot": str(tmp_path / "here")}), "x.npy")
    assert not list(tmp_path.iterdir())

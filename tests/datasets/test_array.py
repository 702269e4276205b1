"""Arrays and tables of bounded values: the files of other programs, bounds, units, and rows that do not fit."""

import csv
import logging
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from datasets import Loader, load_images
from datasets.array_files import read_arrays
from datasets.arrays import describe_array
from datasets.registry import DATASETS
from datasets.units import Composition, Interval, create_units
from sde import ReflectedSimplex, ReflectedVE
from utils.errors import InputError

ROWS = np.random.default_rng(0).uniform(2.0, 7.0, (200, 3))
ROWS[::4, 0], ROWS[1::4, 1] = 2.0, 7.0  # atoms on two bounds
KINDS = np.array(["hail", "rain", "snow"])[np.arange(200) % 3]


NUMBER = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (), }".ljust(127) + b"\n" + bytes(8)


def completed(root, **options):
    """Return the section ``data`` of a configuration, as the start of a run completes it."""
    data = {"root": str(root), "held_out": None, "outside": "error", "num_classes": 0, **options}
    return data | describe_array(data)


def load(root, train=True, **options):
    data = completed(root, **options)
    return DATASETS["array"](train, **data)


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    return tmp_path / "x.npy"


def write(path, rows=ROWS, kinds=KINDS):
    """Write a table as its usual program does."""
    columns = {name: rows[:, i] for i, name in enumerate("abc")} | {"kind": kinds}
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    elif path.suffix == ".parquet":
        parquet.write_table(pa.table({**columns, "kind": pa.array(kinds).dictionary_encode()}), path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, X=rows, kind=kinds)
    else:
        np.save(path, rows)
        np.save(path.with_name("kind.npy"), kinds)
    return path


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz", "npy"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}")
    labels = str(tmp_path / "kind.npy") if suffix == "npy" else "kind"
    data = completed(path, labels=labels, classes=True)
    assert data["shape"] == [3] and data["num_classes"] == 3 and data["class_names"] == ["hail", "rain", "snow"]
    assert data["columns"] == (["a", "b", "c"] if suffix in ("csv", "parquet") else None)
    train, held_out = (DATASETS["array"](split, **data) for split in (True, False))
    own = np.arange(200) % 10 != 9
    assert np.array_equal(train.data.numpy(), ROWS[own]) and np.array_equal(held_out.data.numpy(), ROWS[~own])
    assert train.labels.tolist() == (np.arange(200)[own] % 3).tolist() and train.class_names == ("hail", "rain", "snow")
    assert len(train.fingerprint) == 64 and train.fingerprint != held_out.fingerprint


def test_a_table_of_pandas_with_an_index_and_missing_integers(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": ROWS[:, 0], "n": pandas.array([1, None, 3, 5] * 50, dtype="Int64")})
    frame.index = pandas.Index([f"row{i}" for i in range(200)], name="station")
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"column station holds text, not numbers: name the columns of the data"):
        completed(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"row 1, column n is nan: need a number from 1.0 to 5.0; data.outside"):
        load(tmp_path / "x.parquet", columns=["a", "n"])
    kept = load(tmp_path / "x.parquet", columns=["a", "n"], outside="drop")
    assert kept.data[:, 1].unique().tolist() == [1, 3, 5]


def test_bounds_that_are_left_out(npy):
    """A bound with several values is exact; otherwise it lies beyond the outermost value by the mean spacing."""
    data = completed(npy)
    assert data["low"][0] == 2.0 and data["high"][1] == 7.0
    for column in (1, 2):
        smallest, largest = ROWS[:, column].min(), ROWS[:, column].max()
        assert data["low"][column] == pytest.approx(smallest - (largest - smallest) / 199, abs=1e-12)
    assert data["mass_low"] == [0.25, 0.0, 0.0] and data["mass_high"] == [0.0, 0.25, 0.0]
    assert data["scale"] == 1.0 and data["levels"] == 0 and data["cond_size"] == 0
    assert completed(npy, low=0, high=[7, 8, 9])["high"] == [7, 8, 9]
    assert completed(npy, low=0, high=10)["mass_low"] == [0.0] * 3


@pytest.mark.parametrize(("kind", "share"), [(np.float64, 0.0), (np.float32, 0.25)])
def test_a_bound_is_compared_in_the_type_of_the_data(tmp_path, kind, share):
    rows = np.where(np.arange(40) % 4 == 0, 1.7e9, 1.7e9 + 1e6 * np.arange(40)).reshape(-1, 1).astype(kind)
    np.save(tmp_path / "x.npy", rows)
    assert completed(tmp_path / "x.npy", low=1.7e9 - 10)["mass_low"] == [share], "10 is below the rounding of float32"


def test_integers_are_levels(tmp_path):
    rows = np.random.default_rng(0).integers(-3, 8, (50, 2, 4))
    rows[0, 0, :2] = -3, 7
    np.save(tmp_path / "x.npy", rows)
    data = completed(tmp_path / "x.npy")
    assert (data["low"], data["high"], data["levels"], data["shape"]) == (-3, 7, 11, [2, 4])
    images = load(tmp_path / "x.npy")
    assert images.levels == 11 and not images.is_image
    x0 = images.normalize(images.data)
    assert torch.equal((x0 * 10).round().long() - 3, images.data) and x0.min() == 0 and x0.max() == 1
    u = torch.full(images.data.shape, 0.5)
    assert torch.allclose(images.dequantize(images.data, u), (images.data + 3.5) / 11)
    assert torch.equal(images.units.from_cube(x0 + 0.04), images.data), "rounded to the nearest integer"
    assert load(tmp_path / "x.npy", levels=0).levels is None
    with pytest.raises(InputError, match=r"data.levels=9: the data are not the 9 integers from data.low to data.high"):
        completed(tmp_path / "x.npy", levels=9)
    with pytest.raises(InputError, match=r"data.low=-3.5 and data.high=7: the data are integers"):
        completed(tmp_path / "x.npy", low=-3.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 2.5}, r"x.npy: row 0, column 0 is 2.0: need a number from 2.5 to .*; data.outside=drop"),
        ({"high": [8, 5, 8]}, r"x.npy: row 1, column 1 is 7.0: need a number from .* to 5.0"),
        ({"low": [0, 0]}, "data.low has 2 values, and the data 3 columns or channels"),
        ({"mass_low": [0.1, 0.2]}, "data.mass_low has 2 values, and the data 3 columns or channels"),
        ({"low": 9}, "data.low and data.high: low=9 of channel 0 is not less than high=6.99958"),
        ({"low": "open", "high": "open"}, "data.low and data.high: both sides of channel 0 are open"),
        ({"columns": [0, 3]}, r"data.columns=\[0, 3\]: .*x.npy has the columns 0 to 2"),
        ({"classes": True}, "data.classes=True: say which column or array has them, data.labels=NAME"),
        ({"labels": "kinds.npy"}, "data.labels=kinds.npy: no such file"),
        (
            {"simplex": "ordered"},
            r"row 0, column 0 is 2.0, in a row that sums to .*: need parts of at least 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(npy, options, message):
    with pytest.raises(InputError, match=message) as error:
        load(npy, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"1", "data.root=.*x.txt: need a file .npy, .npz, .parquet or .csv"),
        ("x.npy", None, "data.root=.*x.npy does not exist"),
        ("x.npy", b"junk", "x.npy cannot be read: it does not start as one"),
        ("x.npy", NUMBER, "x.npy holds a single number, and not one for each sample"),
        ("x.csv", b"1.0,2.0\n3.0,4.0\n", "x.csv begins with numbers: its first line has to name the columns"),
        ("x.csv", b"a,a\n3.0,4.0\n", "x.csv has two columns called a"),
        ("x.csv", b"a,b\n3.0,\n2.0,1.0\n1.0,2.0\n", "x.csv: row 0, column b is nan"),
        ("x.csv", b"a,b\n3.0,1.0\n2.0,1.0\n", "x.csv: column b is constant, 1: leave it out by data.columns"),
        ("x.csv", b"a,b\n3.0,x\n2.0,y\n", "x.csv: column b holds text, not numbers: name the columns"),
        ("x.csv", b"a,b\n3.0\n", "x.csv cannot be read as a csv file"),
        ("x.parquet", b"PAR1", "x.parquet cannot be read as a parquet file"),
    ],
)
def test_damaged_and_unsuitable_files_are_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [">f8", ">i4", ">u2", "<f2", "?", "longdouble", "uint16", "uint64"])
def test_numbers_of_other_machines_and_types_are_read(tmp_path, kind):
    rows = np.random.default_rng(0).integers(0, 2, (40, 3)).astype(kind)
    rows[:3, 0] = 0, 1, 0
    np.save(tmp_path / "x.npy", rows)
    images = load(tmp_path / "x.npy", low=0, high=1)
    own = np.arange(40) % 10 != 9
    assert np.array_equal(images.normalize(images.data).numpy(), rows[own].astype(np.float32))
    assert torch.equal(Loader(images, 36, 0, "cpu")(0)[0].sort(0).values, images.normalize(images.data).sort(0).values)


def test_the_numbers_that_pandas_gives_rows_are_no_data(tmp_path):
    (tmp_path / "x.csv").write_text(",a\n" + "".join(f"{i},{x}\n" for i, x in enumerate(ROWS[:, 2])))
    with pytest.raises(InputError, match=r"x.csv: column 1 has no name, as that in which pandas numbers the rows"):
        load(tmp_path / "x.csv")
    assert load(tmp_path / "x.csv", columns=["a"]).shape == (1,)
    parquet.write_table(pa.table({"a": ROWS[:, 2], "__index_level_0__": np.arange(200)}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x.parquet: column __index_level_0__ has no name"):
        load(tmp_path / "x.parquet")


def test_columns_called_by_numbers(tmp_path):
    parquet.write_table(pa.table({"2019": ROWS[:, 2], "2020": ROWS[:, 1]}), tmp_path / "x.parquet")
    data = completed(tmp_path / "x.parquet", columns=[2020])
    assert np.array_equal(load(tmp_path / "x.parquet", columns=[2020]).data[:9, 0], ROWS[:9, 1])
    assert data["columns"] == [2020] and data["shape"] == [1]


def test_a_pickle_is_not_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="holds object, not numbers"):
        load(tmp_path / "x.npy")


def test_rows_out_of_bounds_are_dropped_or_moved_as_asked_and_said_so(tmp_path, caplog):
    rows = ROWS.copy()
    rows[5, 2], rows[7, 1], rows[9, 0] = np.inf, 9.0, np.nan
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(InputError, match="row 5, column 2 is inf"):
        load(tmp_path / "x.npy", low=2, high=7)
    kept = load(tmp_path / "x.npy", low=2, high=7, outside="drop")
    assert len(kept) == 178 and "2 of 180 rows are left out (data.outside=drop)" in caplog.text
    rows[5, 2] = rows[9, 0] = 3.0
    np.save(tmp_path / "x.npy", rows)
    moved = load(tmp_path / "x.npy", low=2, high=7, outside="clip")
    assert len(moved) == 180 and moved.data[7, 1] == 7.0
    assert "1 values outside of the bounds are moved to them (data.outside=clip)" in caplog.text
    rows[9, 0] = np.nan
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(InputError, match="row 9, column 0 is nan"):
        load(tmp_path / "x.npy", train=False, low=2, high=7, outside="clip")


def test_a_held_out_file(npy, tmp_path):
    np.save(tmp_path / "held_out.npy", ROWS[:7] + 0.5)
    data = {"held_out": str(tmp_path / "held_out.npy"), "high": 8}
    train, held_out = load(npy, **data), load(npy, train=False, **data)
    assert len(train) == 200 and np.array_equal(held_out.data.numpy(), ROWS[:7] + 0.5)
    np.save(tmp_path / "held_out.npy", ROWS[:7, :2])
    with pytest.raises(InputError, match=r"data.held_out=.* has rows of shape \(2,\) \[\], data.root of \(3,\)"):
        load(npy, **data)


def test_a_large_file_is_mapped_into_memory(tmp_path, monkeypatch):
    """The batches of a mapped float64 file are those of the same rows in memory."""
    monkeypatch.setattr("datasets.array_files.IN_MEMORY", 100)
    np.save(tmp_path / "x.npy", ROWS)
    with pytest.raises(InputError, match=r"is mapped into memory: say which rows are held out, data.held_out=FILE"):
        load(tmp_path / "x.npy")
    np.save(tmp_path / "held_out.npy", ROWS[:7])
    options = {"held_out": str(tmp_path / "held_out.npy")}
    mapped = load(tmp_path / "x.npy", **options)
    assert isinstance(read_arrays(tmp_path / "x.npy", "data.root", map_large=True).x, np.memmap)
    assert mapped.file is not None and mapped.data.dtype == torch.float64
    monkeypatch.setattr("datasets.array_files.IN_MEMORY", 2**30)
    memory = load(tmp_path / "x.npy", **options)
    assert memory.file is None and memory.fingerprint == mapped.fingerprint
    for step in (0, 3):
        batches = [Loader(images, 64, 1, "cpu", in_memory=0)(step) for images in (mapped, memory)]
        assert all(map(torch.equal, *batches)) and batches[0][0].dtype == torch.float32
    np.save(tmp_path / "x.npy", np.asfortranarray(ROWS))
    monkeypatch.setattr("datasets.array_files.IN_MEMORY", 100)
    with pytest.raises(InputError, match="is stored in Fortran order"):
        load(tmp_path / "x.npy", **options)


def test_conditions(tmp_path):
    path = write(tmp_path / "x.csv")
    data = completed(path, cond=["c", "a"], labels="kind", columns=["b"])
    assert data["cond_size"] == 2 and data["shape"] == [1]
    images = DATASETS["array"](True, **data)
    assert torch.equal(images.labels[0], torch.tensor(ROWS[0, [2, 0]], dtype=torch.float32))
    with pytest.raises(InputError, match=r"data.cond=d: .*x.csv has the columns a, b, c, kind$"):
        completed(path, cond="d", labels="kind")
    with pytest.raises(InputError, match=r"column kind holds text, not numbers$"):
        completed(path, cond="kind")


def test_numbered_classes_of_which_a_split_has_few(tmp_path):
    kinds = np.where(np.arange(200) % 10 == 9, 90, np.arange(200) % 100)
    path = write(tmp_path / "x.npz", kinds=kinds)
    data = completed(path, labels="kind", classes=True)
    assert data["num_classes"] == 99 and data["class_names"] is None
    held_out = load_images(train=False, **{"dataset": "array", **data})
    assert held_out.labels.tolist() == [90] * 20 and held_out.num_classes == 99


def test_names_of_numbered_classes(tmp_path):
    path = write(tmp_path / "x.npz", kinds=np.arange(200) % 3)
    images = load(path, labels="kind", class_names=["hail", "rain", "snow"])
    assert images.class_names == ("hail", "rain", "snow") and images.labels[:6].tolist() == [0, 1, 2] * 2
    with pytest.raises(InputError, match=r"x.npz: row 2 is of class 2, and the classes are 0 to 1"):
        load(path, labels="kind", class_names=["hail", "rain"])
    assert load(path, labels="kind", class_names=["2", "1", "0"]).labels[:3].tolist() == [2, 1, 0]


def test_labels_by_number_and_unknown_classes(tmp_path):
    path = write(tmp_path / "x.npz", kinds=np.arange(200) % 4)
    data = completed(path, labels="kind")
    assert data["num_classes"] == 4 and data["class_names"] is None
    write(path, kinds=np.full(200, 1980))
    assert completed(path, labels="kind")["class_names"] == ["1980"]
    write(path, kinds=np.arange(200) % 7)
    with pytest.raises(InputError, match=r"has the class 6, and data.num_classes=4"):
        DATASETS["array"](True, **data)
    with pytest.raises(InputError, match="row 0 is of class hail, known are sun"):
        load(write(path), labels="kind", class_names=["sun"])


BOUNDS = Interval([0.1, -math.inf, 3.0], [0.7, 5.0, math.inf], [1.0, 2.0, 4.0])


def test_values_go_to_the_cube_and_back():
    u = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    u[0], u[1] = 0.0, 1.0
    x = BOUNDS.from_cube(u)
    assert x.dtype == torch.float64 and torch.allclose(BOUNDS.to_cube(x), u, atol=2e-7)
    assert x[:, 0].min() == 0.1 and x[:, 0].max() == 0.7 and x[:, 1].max() == 5.0 and x[:, 2].min() == 3.0
    assert x.isfinite().all() and torch.equal(BOUNDS.contains(x), torch.ones(1000, dtype=torch.bool))
    assert BOUNDS.contains(torch.tensor([[0.05, 0, 4], [0.5, 6, 4], [0.5, 0, 2], [0.5, math.nan, 4]])).sum() == 0


def test_the_jacobian_is_that_of_the_map():
    x = torch.tensor([[0.2, 4.0, 3.5], [0.69, -3.0, 11.0]], dtype=torch.float64)
    low, high, scale = torch.tensor([0.1, 0, 3.0]), torch.tensor([0.7, 5, 0]), torch.tensor([1.0, 2, 4])

    def to_cube(row):
        line = (row[0] - low[0]) / (high[0] - low[0])
        below, above = torch.exp(-(high[1] - row[1]) / scale[1]), 1 - torch.exp(-(row[2] - low[2]) / scale[2])
        return torch.stack([line, below, above])

    for row in x:
        matrix = torch.autograd.functional.jacobian(to_cube, row)
        u = to_cube(row)[None]
        assert torch.allclose(u.float(), BOUNDS.to_cube(row[None]), atol=1e-6)
        assert BOUNDS.log_jacobian(u).item() == pytest.approx(torch.linalg.slogdet(matrix)[1].item(), abs=1e-6)


def test_the_scale_of_an_open_side(tmp_path):
    rows = np.array([[0.0], [0.0], [1.0], [3.0]])
    np.save(tmp_path / "x.npy", rows)
    assert completed(tmp_path / "x.npy", low=0, high="open")["scale"] == [2.0]
    np.save(tmp_path / "x.npy", np.append(rows, [[1000.0]], 0))
    assert completed(tmp_path / "x.npy", low=0, high="open")["scale"] == [1004 / 3]
    np.save(tmp_path / "x.npy", np.append(np.tile(rows, (100, 1)), [[1000.0]], 0))
    data = completed(tmp_path / "x.npy", low=0, high="open")
    assert data["scale"] == [125.0] and data["mass_low"] == [round(200 / 401, 6)] and data["mass_high"] == [0.0]
    assert create_units(data).to_cube(torch.tensor([[1000.0]])).item() < 1 - 3e-4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"low": [0.0, 0.0]}, "data.low has 2 values, and the data 3 columns or channels"),
        ({"mass_high": [0.5] * 4}, "data.mass_high has 4 values, and the data 3"),
        ({"scale": []}, "data.scale has 0 values"),
        ({"scale": None}, "data.scale is missing"),
        ({"high": None}, "data.high is missing"),
        ({"low": 2.0}, "data.low and data.high: low=2 of channel 0 is not less than high=1"),
        ({"low": -1e308, "high": 1e308}, "low=-1e\\+308 and high=1e\\+308 of channel 0 are too far apart"),
        ({"low": "open", "levels": 5}, "data.levels=5: data.low and data.high are not those of so many integers"),
        ({"high": 2.5, "levels": 3}, "data.levels=3: data.low and data.high are not"),
        ({"simplex": "ordered", "high": [1.0]}, None),
        ({"simplex": "ordered", "high": -1.0}, "data.low=0.0 and data.high=-1.0: need 0 and the sum of the parts"),
        ({"simplex": "ordered", "high": "open"}, "data.low=0.0 and data.high=open: need 0"),
        ({"simplex": "ordered", "mass_low": [0.0] * 3}, "data.mass_low has 3 values, and the data 4"),
        ({"simplex": "ordered", "shape": [3, 2]}, "of vectors"),
    ],
)
def test_units_of_an_unsound_configuration_are_refused(data, message):
    """Those of a model from somebody else, whose values have the right types."""
    data = {"low": 0.0, "high": 1.0, "scale": 1.0, "mass_low": None, "mass_high": [0.0], "shape": [3], **data}
    if message is None:
        assert create_units(data).total == 1.0
        return
    with pytest.raises(InputError, match=message):
        create_units(data)


def test_compositions_in_order_need_a_process_that_keeps_the_order(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).dirichlet([1, 2, 3], 20))
    images = load(tmp_path / "x.npy", simplex="ordered")
    images.check_domain(ReflectedSimplex(0.01, 5.0))
    with pytest.raises(InputError, match=r"data.simplex=ordered needs a process that keeps values in order"):
        images.check_domain(ReflectedVE(0.01, 5.0))
    load(tmp_path / "x.npy", simplex="sticks").check_domain(ReflectedVE(0.01, 5.0))


def test_few_rows_are_an_error_of_one_line(tmp_path):
    np.save(tmp_path / "x.npy", ROWS[:3])
    assert len(load(tmp_path / "x.npy")) == 3
    with pytest.raises(InputError, match=r"x.npy has no row that is held out"):
        load(tmp_path / "x.npy", train=False)


def test_many_columns_share_their_bounds(tmp_path):
    rows = np.random.default_rng(0).random((20, 1001))
    np.save(tmp_path / "x.npy", rows)
    data = completed(tmp_path / "x.npy", low=0)
    assert data["low"] == 0 and rows.max() < data["high"] < 1.001 and data["mass_low"] == [0.0]
    with pytest.raises(InputError, match=r"data.low: more than 1000 columns or channels share one value"):
        completed(tmp_path / "x.npy", low=[0.0] * 1001)


@pytest.mark.parametrize("dequantize", [True, False])
def test_integers_come_back_from_the_cube_as_they_went(tmp_path, dequantize):
    rows = np.arange(60).reshape(-1, 1) % 3 - 1
    np.save(tmp_path / "x.npy", rows)
    data = completed(tmp_path / "x.npy") | {"dequantize": dequantize}
    images = DATASETS["array"](True, **data)
    units = create_units(data)
    for u in (0.0, 0.4, 0.999):
        x0 = (
            images.dequantize(images.data, torch.full(images.data.shape, u))
            if dequantize
            else images.normalize(images.data)
        )
        assert torch.equal(units.from_cube(x0), images.data), u
    assert units.from_cube(torch.ones(1, 1)).item() == 1


def test_a_composition_of_many_small_parts_keeps_one():
    parts = torch.full((2, 100), 0.01)
    parts[0, 3] += 0.005
    units = Composition("ordered", 1.0, [0.5] * 100)
    drawn = units.from_cube(units.snap(units.to_cube(parts), 0.01))
    assert drawn.isfinite().all() and torch.allclose(drawn.sum(1), torch.ones(2, dtype=torch.float64))
    assert drawn[0, 3] == 1.0


def test_drawn_values_beside_an_atom_are_put_on_it():
    units = Interval([0.0, 0.0], [10.0, 10.0], [1.0, 1.0], mass_low=[0.3, 0.001], mass_high=[0.0, 0.2])
    u = torch.tensor([[0.002, 0.002], [0.0031, 0.9971], [0.999, 0.9969]])
    assert units.snap(u, 0.001).tolist() == torch.tensor([[0.0, 0.002], [0.0031, 1.0], [0.999, 0.9969]]).tolist()


@pytest.mark.parametrize("kind", ["ordered", "sticks"])
def test_compositions_go_to_the_cube_and_back(tmp_path, kind):
    parts = np.random.default_rng(0).dirichlet([1, 2, 3, 1], 100)
    parts[::3, 1] = 0
    parts /= parts.sum(1, keepdims=True)
    np.save(tmp_path / "x.npy", 100 * parts)
    data = completed(tmp_path / "x.npy", simplex=kind, high=100)
    assert data["shape"] == [3] and data["mass_low"] == [0.0, 0.34, 0.0, 0.0] and data["levels"] == 0
    images = load(tmp_path / "x.npy", simplex=kind, high=100)
    assert images.shape == (3,) and isinstance(images.units, Composition)
    u = images.normalize(images.data)
    assert torch.allclose(images.units.from_cube(u), images.data, atol=1e-4)
    near = images.units.snap(u.clamp(min=1e-4), 1e-3)
    back = images.units.from_cube(near)
    assert back.sum(1).allclose(torch.full((90,), 100.0, dtype=torch.float64), atol=1e-4)
    assert (back[images.data[:, 1] == 0, 1].abs() < 1e-4).all()
    jacobian = images.units.log_jacobian(u)
    if kind == "ordered":
        assert jacobian.allclose(torch.full((90,), -3 * np.log(100), dtype=torch.float64))


def load_other(options):
    """Return the options with bounds that are those of any number of columns."""
    return options | {"low": 0.0, "high": 9.0, "mass_low": 0.0, "mass_high": 0.0}


def test_the_registry_checks_shape_and_classes(npy):
    data = completed(npy)
    options = {key: value for key, value in data.items() if key not in ("num_classes",)}
    assert load_images("array", True, num_classes=1, classes=False, **options).shape == (3,)
    with pytest.raises(InputError, match=r"x.npy has rows of shape \(3,\), and those of the run have \(4,\)"):
        load_images("array", True, num_classes=1, classes=False, **{**load_other(options), "shape": [4]})
    with pytest.raises(InputError, match=r"data.dequantize=True: data.dataset=array has no grey levels"):
        load_images("array", True, num_classes=1, classes=False, dequantize=True, **options)


def test_nothing_is_logged_about_data_that_fit(npy, caplog):
    with caplog.at_level(logging.WARNING):
        load(npy)
    assert not caplog.text

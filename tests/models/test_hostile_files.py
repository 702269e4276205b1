"""Files that claim more than they contain: refused in one line, before they take time or memory."""

import io
import logging.config
import pickle
import re
import resource
import struct
import time
import zipfile
import zlib
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from models.io.checkpoint import read_checkpoint
from models.io.config import parse_config
from models.io.pickle_size import MAX_BYTES
from models.io.safetensors import read_safetensors
from tests.conftest import ROOT
from tests.models.test_models import GOLDEN
from utils.errors import InputError

GOOD = GOLDEN / "reference_run/checkpoints/checkpoint_1.pth"


class Quick:
    """Limit the work inside the context to some seconds of a processor and 300 MB of additional memory."""

    def __init__(self, seconds=2):
        self.seconds = seconds

    def __enter__(self):
        self.start = time.process_time()
        self.most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __exit__(self, *_):
        assert time.process_time() - self.start < self.seconds
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.most < 300_000  # KiB


def local(name, data, extra=b""):
    """The header of an entry of a ZIP archive, and its data."""
    sizes = (zlib.crc32(data), len(data), len(data), len(name), len(extra))
    return struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, *sizes) + name + extra + data


def central(name, data, offset):
    """The entry of the directory for ``local``."""
    sizes = (zlib.crc32(data), len(data), len(data), len(name))
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, *sizes, 0, 0, 0, 0, 0, offset) + name


def end(count, directory, start):
    """The last record of a ZIP archive."""
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)


def one_name(path):
    """60,000 entries that are one, of a megabyte."""
    data = bytes(10**6)
    start, directory = local(b"a/data/0", data), central(b"a/data/0", data, 0) * 60_000
    path.write_bytes(start + directory + end(60_000, directory, len(start)))


def one_content(path):
    """The same with a name for each."""
    data = bytes(10**6)
    start = local(b"a/data/00000", data)
    first = central(b"a/data/00000", data, 0)
    directory = b"".join(first.replace(b"00000", b"%05d" % i) for i in range(60_000))
    path.write_bytes(start + directory + end(60_000, directory, len(start)))


def quoted(path):
    """Each entry holds the headers of those after it as its data."""
    body, directory, count = b"", b"", 500
    for i in reversed(range(count)):
        header = local(b"a/data/%05d" % i, body)[: 30 + 12]
        body = header + body
    for i in range(count):
        rest = body[42 * (i + 1) :]
        directory += central(b"a/data/%05d" % i, rest, 42 * i)
    path.write_bytes(body + directory + end(count, directory, len(body)))


def giant_directory(path):
    """200,000 entries without contents."""
    start = local(b"a", b"")
    directory = central(b"a", b"", 0) * 200_000
    path.write_bytes(start + directory + end(65535, directory, len(start)))


def two_directories(path):
    """A directory that is not at the stated place, where some readers search for it and others do not."""
    data = bytearray(GOOD.read_bytes())
    data[-98 + 48] ^= 1  # where the first of them starts, as the record of 64 bits says
    path.write_bytes(data)


def something_after(path):
    path.write_bytes(GOOD.read_bytes() + b"PK")


def name_in_capitals(path):
    """A second pickle that PyTorch may read instead of the first, because it ignores the case of names."""
    pickled(P + b"}.", True)(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/DATA.PKL", P + b"N" * MAX_BYTES + b".")


def pickled(data, zipped):
    """A checkpoint of either form with the pickle ``data``."""

    def make(path):
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                for name, contents in (("data.pkl", data), ("version", b"3\n"), ("byteorder", b"little")):
                    archive.writestr(f"a/{name}", contents)
        else:
            whole = io.BytesIO()
            torch.save({}, whole, _use_new_zipfile_serialization=False)
            before = whole.getvalue()
            empty = pickle.dumps({}, 2)
            assert before.count(empty) == 1
            path.write_bytes(before.replace(empty, data))

    return make


def doubled(times):
    """A tuple of two that are one tuple of two, and so on, which is the last in the memo."""
    pairs = (b"h%ch%c\x86q%c" % (i - 1, i - 1, i) for i in range(1, times))
    return b")q\0" + b"".join(pairs)


def integer(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(length):
    return b"X" + struct.pack("<I", length) + b"a" * length


P = b"\x80\x02"
OF_ONE_HASH = [integer(i * (2**61 - 1)) for i in range(1, 10_000)]
OTHER_KEYS = "other keys than text and short integers"
PICKLES = {
    "a tuple that doubles as key": (P + doubled(20) + b"}h\x13K\1s.", OTHER_KEYS),
    "one that doubles more": (P + doubled(40) + b"}h\x27K\1s.", "repeats the same values"),
    "one in a set": (P + b"c__builtin__\nset\n](" + doubled(20) + b"e\x85R.", OTHER_KEYS),
    "one as a storage": (P + doubled(12) + b"(X\7\0\0\0storagectorch\nFloatStorage\nh\x0btQ.", "than the tensors"),
    "one that is called": (P + doubled(40) + b")R.", "repeats the same values"),
    "one made of lists": (
        P
        + b"".join(b"]q%c" % i for i in range(1, 40))
        + b"".join(b"h%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(39, 1, -1))
        + b".",
        "changes a value that it has put elsewhere",
    ),
    "keys of one hash": (P + b"}(" + b"K\1".join(OF_ONE_HASH) + b"K\1u.", OTHER_KEYS),
    "a set of one hash": (P + b"c__builtin__\nset\n](" + b"".join(OF_ONE_HASH) + b"e\x85R.", OTHER_KEYS),
    "pairs of one hash": (
        P + b"ccollections\nOrderedDict\n](" + b"".join(key + b"N\x86" for key in OF_ONE_HASH) + b"e\x85R.",
        OTHER_KEYS,
    ),
    "a dictionary called by another function": (
        P + b"ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\nN))tR.",
        "than the tensors and plain",
    ),
    "attributes of one hash": (
        P + b"ccollections\nOrderedDict\n)R](" + b"".join(key + b"N\x86" for key in OF_ONE_HASH) + b"eb.",
        "than the tensors and plain",
    ),
    "a set of a later protocol": (b"\x80\x04" + doubled(20) + b"(h\x13\x91.", "not of protocol 2"),
    "many values": (P + b"N" * MAX_BYTES + b".", "operations"),
    "deep": (P + b"]" * 400_000 + b"a" * 399_999 + b".", "operations"),
    "a giant text": (P + text(2 * MAX_BYTES) + b".", "its pickle has more than"),
    "a text that is not there": (P + text(9)[:1] + struct.pack("<I", 2**32 - 1) + b"aaa.", "cannot be read"),
    "bytes of any number": (P + b"c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\1\x85R.", "than the tensors and plain"),
    "many names": (P + b"ca\nb\n" * 100_000 + b"N.", "than the tensors and plain"),
    "a text encoded often": (
        P + b"c_codecs\nencode\nq\0" + text(10**6) + text(5) + b"\x86q\1" + b"h\0h\1R" * 10_000 + b".",
        "copies the same values",
    ),
    "a dictionary copied often": (
        P
        + b"ccollections\nOrderedDict\nq\0}("
        + b"".join(b"M" + struct.pack("<H", i) + b"K\1" for i in range(5_000))
        + b"u\x85q\1"
        + b"h\0h\1R" * 5_000
        + b".",
        "copies the same values",
    ),
    "a giant tensor": (P + b"ctorch\nFloatTensor\n\x8a\x07\0\0\0\0\0\0\1\x85R.", "cannot be read as a checkpoint"),
}
CHECKPOINTS = {
    "entries of one name": (one_name, "several of its entries have one name"),
    "entries of one content": (one_content, "in it overlaps what comes after"),
    "entries in each other": (quoted, "in it overlaps what comes after"),
    "a giant directory": (giant_directory, "its directory has 9,400,000 bytes"),
    "two directories": (two_directories, "its directory is not where it says"),
    "a name in capitals": (name_in_capitals, "differ in case alone"),
    "something after the end": (something_after, "does not end as one"),
    **{f"{name}, zipped": (pickled(data, True), message) for name, (data, message) in PICKLES.items()},
    **{f"{name}, old": (pickled(data, False), message) for name, (data, message) in PICKLES.items()},
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_grows(case, tmp_path):
    make, message = CHECKPOINTS[case]
    make(tmp_path / "x.pth")
    with Quick(), pytest.raises(InputError, match=message) as refusal:
        read_checkpoint(tmp_path / "x.pth")
    assert str(refusal.value).startswith(f"{tmp_path / 'x.pth'} cannot be read as a checkpoint: ")
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_with_other_keys_than_names_is_read(tmp_path):
    contents = {
        **{"seed": 2**127, "epochs": {True: "a", 10**12: "b", -5: "c", None: "d"}, "sets": {"a", 1}},
        **{"counts": Counter("abba"), "pairs": [(0.5, (1, 2)), (0.5, (1, 2))], "ordered": OrderedDict(a=1)},
    }
    torch.save(contents, tmp_path / "new.pth")
    torch.save(contents, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "new.pth") == read_checkpoint(tmp_path / "old.pth") == contents


def test_a_checkpoint_with_twice_the_tensors_of_the_largest_network_is_read(tmp_path):
    one = torch.zeros(1)
    tensors = {f"down_levels.3.blocks.{i}.0.conv1.weight": one.clone() for i in range(10_000)}
    torch.save({"model": tensors, "classes": [f"class {i}" for i in range(10_000)]}, tmp_path / "large.pth")
    assert len(read_checkpoint(tmp_path / "large.pth")["model"]) == 10_000
    torch.save({"model": dict(list(tensors.items())[:5000])}, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert len(read_checkpoint(tmp_path / "old")["model"]) == 5_000


def test_a_safetensors_file_with_a_giant_header(tmp_path):
    path = tmp_path / "x.safetensors"
    header = b'{"__metadata__":{"config":"' + b"a" * 90_000_000 + b'"}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with Quick(), pytest.raises(InputError, match=r"x\.safetensors cannot be read: its header has 90,000,030 bytes"):
        read_safetensors(path)
    save_file({f"down_levels.{i}": torch.zeros(1) for i in range(10_000)}, path, metadata={"config": "a: 1"})
    with pytest.raises(InputError, match="checksum"):  # such a header is read
        read_safetensors(path)


CONFIG = (ROOT / "tests/golden/ddpmpp_small.yaml").read_text()
LONG = 250_000
YAML = {
    "a flow": "a: [" + "1," * (LONG // 2) + "1]",
    "a flow in lines": "a: [" + "1,1,1,1,1,1,1,1,1,1,1,1,\n  " * (LONG // 27) + "1]",
    "a flow of flows": "a: [" + "[],[],[],[],[],[],[],[],\n  " * (LONG // 27) + "1]",
    "a flow of pairs": "a: [" + "b: 1,b: 1,b: 1,b: 1,b: 1,\n  " * (LONG // 28) + "1]",
    "empty keys": "a: [" + "? ,? ,? ,? ,? ,? ,? ,? ,? ,\n  " * (LONG // 30) + "1]",
    "a mapping": "a: {" + ",\n  ".join(f"k{i}: 1, l{i}: 1, m{i}: 1" for i in range(LONG // 30)) + "}",
    "lines": "\n".join(f"k{i}: 1" for i in range(LONG // 10)),
    "dates": "a: [" + "2001-01-01," * (LONG // 11) + "1]",
    "tags": "a: [" + "!!str 1,!!str 1,!!str 1,\n  " * (LONG // 20) + "1]",
    "comments": "#\n" * (LONG // 2),
    "a long text": 'a: "' + "\n".join(["x " * 4000] * 100) + '"',
    "a number of base 60": "a: " + "1:" * (LONG // 2) + "1",
    "a number": "a: " + "1" * 8000,
    "interpolations": 'a: ["' + "${b:1,2}" * 400 + '"]',
    "interpolations in each other": 'a: "' + "${b:" * 1000 + '"',
}


@pytest.mark.parametrize("case", YAML)
def test_a_configuration_that_takes_long(case):
    with Quick(), pytest.raises(InputError, match="for the configuration of a run"):
        parse_config(f"{CONFIG}\n{YAML[case]}\n", Path("config.yaml"))


def test_a_configuration_with_many_classes_is_read():
    """10,000 species with their whole names, the longest that a data set of images by classes has, or 21,841 short."""
    name = "05733_Plantae_Tracheophyta_Magnoliopsida_Caryophyllales_Cactaceae_Echinocactus_horizontha"
    for names in ([f"{i} {name}" for i in range(10_000)], [f"n{i:08}" for i in range(21_841)]):
        written = "".join(f"\n  - {name}" for name in names)
        text = CONFIG.replace("\ndata:\n", f"\ndata:\n  class_names:{written}\n")
        assert parse_config(text, Path("config.yaml")).data.class_names == names


@pytest.mark.parametrize(
    "more", ["x: [" + "a," * 23_500 + "]", "\n".join(["x:", *(f"  k{i}: 1" for i in range(11_500))])]
)
def test_a_configuration_at_the_limit_is_read_at_once(more):
    with Quick(seconds=5):  # of a legitimate file, which takes two on a slow machine
        assert len(parse_config(f"{CONFIG}\n{more}\n", Path("config.yaml")).x) >= 11_500


BAD_SCALARS = [
    "!!bool x",
    "!!int ''",
    "!!float ''",
    "!!int '_'",
    "!!timestamp x",
    "1:" + "59:" * 1300 + "59.5",
    "!!binary x",
]


@pytest.mark.parametrize(
    "value", [*BAD_SCALARS, "!!set {b}", "!!python/none ''", "!!bool secret", "!!timestamp 2001-01-01"]
)
def test_a_value_that_its_tag_does_not_fit(value):
    for more in (f"x: {value}", f"{value}: x", f"x: [{value}]"):
        with pytest.raises(InputError, match=r"^config\.yaml (cannot be read as YAML|holds what is no)") as refusal:
            parse_config(f"{CONFIG}\n{more}\n", Path("config.yaml"))
        assert "secret" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_number_that_is_too_long_to_write():
    for text in (re.sub("image_size: .*", f"image_size: 0x{'f' * 4000}", CONFIG), f"{CONFIG}\nx: [0x{'f' * 4000}]\n"):
        with pytest.raises(InputError, match=r"^config\.yaml holds an integer of more than 1024 bits$"):
            parse_config(text, Path("config.yaml"))


def test_log_lines_about_a_file_have_no_control_characters(tmp_path, capsys):
    logging_config = yaml.safe_load((ROOT / "configs/hydra/job_logging/lines.yaml").read_text())
    logging_config["handlers"]["file"]["filename"] = str(tmp_path / "logs")
    logging_config["loggers"], logging_config["root"] = {"of the test": logging_config.pop("root")}, {}
    logging.config.dictConfig(logging_config)
    log = logging.getLogger("of the test")
    try:
        name = "a\x1b[2J\u202egnp\u2028\x9bm\x07\r\n2026-11-25 INFO all is well"
        log.warning("%s cannot be read: %s", Path(name), InputError(f"{name} is damaged"))
        log.info("%s\nin two lines\t.", "a table\x1b[1m")
    finally:
        log.handlers[1].close()
        log.handlers.clear()
    for said, lines in ((capsys.readouterr().err, 3), ((tmp_path / "logs").read_text(), 3)):
        assert all(line.isprintable() for line in said.splitlines()) and len(said.splitlines()) == lines
        assert "in two lines" in said.splitlines()[2] and "a\\x1b[2J\\u202egnp" in said

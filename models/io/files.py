"""The files of a model directory, which is treated as untrusted data: nothing in it is executed or looked up."""

import functools
import hashlib
import logging
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.io.pickle_size import LARGEST_PICKLE, check_pickle, check_pickles_of_old_file
from models.io.published import from_published, is_published
from models.io.restricted_pickle import STAND_INS, what_is_refused
from utils.archives import open_zip
from utils.checks import OneOf
from utils.errors import InputError
from utils.schema import DATA, FOLDER, NETWORKS, OF_ALL_NETWORKS, SDE, check_loaded

log = logging.getLogger(__name__)

# What zipfile, pickle and torch raise on bytes that are not what they should be.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, AssertionError, OverflowError),
)
# What yaml raises, and what its loader does on text that its tag, written or implied, does not fit: !!int ''.
BAD_YAML = (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
OTHER_PICKLE = "its pickle is damaged, not of protocol 2, or does more than hold tensors and plain values"
CHECKPOINT = r"checkpoint_(0|[1-9][0-9]*)\.pth"  # names of those to keep
# Ours have some 3,000 characters and 150 values, and the names of the classes besides, of which data sets have 21,841.
LONGEST_CONFIG = 2**20  # characters
LONGEST_LINE = 2**16
LONGEST_VALUE = 2**12
DEEPEST_CONFIG = 10  # sections in each other
MOST_VALUES = 24_000  # and beginnings and ends of sections and lists
MOST_LINES = 60_000
MOST_INTERPOLATIONS = 100
LARGEST_HEADER = 2**21  # bytes of a safetensors file: 20,000 tensors
REQUIRED = {
    "model": ("name",),
    "data": ("image_size", "num_channels"),
    "sde": ("sigma_min", "sigma_max", "num_scales"),
}


def load_config(run_dir: Path) -> DictConfig:
    """The configuration of a run in our keys, as plain values: interpolations are refused, not evaluated.

    Raises:
        InputError: if the file is missing, is not YAML, lacks what every run has, holds an interpolation, or asks for
            what we do not have.
    """
    path = Path(run_dir) / ".hydra/config.yaml"
    if not path.is_file():
        raise InputError(f"{path} does not exist: {run_dir} is not a run directory")
    try:
        with path.open() as file:
            text = file.read(LONGEST_CONFIG + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> DictConfig:
    """The configuration in the YAML ``text`` of ``path``; otherwise as ``load_config``."""
    try:
        values = _read_yaml(text, path)
    except InputError:
        raise
    except BAD_YAML as error:
        mark = getattr(error, "problem_mark", None)  # where it is, but not what: the file may be a link to another
        raise InputError(f"{path} cannot be read as YAML{f', line {mark.line + 1}' if mark else ''}") from error
    for section, keys in REQUIRED.items():
        part = values.get(section) if isinstance(values, dict) else None
        for key in keys:
            if not isinstance(part, dict) or key not in part:
                raise InputError(f"{path} has no {section}.{key}: it is not the configuration of a run")
    try:
        cfg = from_published(values)
        if is_published(values):
            cfg = _without_what_nothing_reads(cfg, path)
        if any(map(_is_unresolved, _strings(cfg))):  # as read: in the text it can be spelt otherwise
            raise InputError("holds an interpolation, ${...}, or ???: write the value itself")
        check_loaded(cfg)
        return OmegaConf.create(cfg)
    except (AttributeError, InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    except (OmegaConfBaseException, ValueError) as error:  # which has the value in it, or cannot write it
        reason = "a set, a date or a number of thousands of digits"
        raise InputError(f"{path} holds what is no value of a configuration, such as {reason}") from error


def _without_what_nothing_reads(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """A published configuration, translated, without keys that this code does not know, each of which is a warning.

    A released configuration may hold keys that the public code does not have; whether the network is the same, its
    tensors tell. Other sections than those of a network are of no use here; they may hold what is not a value.
    """
    OneOf(tuple(NETWORKS))("model.name", cfg["model"]["name"])
    network = NETWORKS[cfg["model"]["name"]]
    known = {"model": {*OF_ALL_NETWORKS, *network}, "data": {*DATA, *FOLDER, "root"}, "sde": {*SDE}}
    kept = {}
    for section, part in cfg.items():
        if section in known:
            kept[section] = {key: value for key, value in part.items() if key in known[section]}
            for key in part:
                if key not in known[section]:
                    _warn_once(f"{path}: {section}.{key} is unknown here and ignored")
        elif not any(map(_is_unresolved, _strings(part))):
            kept[section] = part
    return kept


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _is_unresolved(value: str) -> bool:
    return "${" in value or value == "???"


def _strings(tree: Any) -> Iterator[str]:
    """All strings in a tree of dictionaries and lists, keys included."""
    if isinstance(tree, dict):
        tree = [*tree.keys(), *tree.values()]
    for item in tree if isinstance(tree, list) else ():
        yield from _strings(item)
    if isinstance(tree, str):
        yield tree


def _read_yaml(text: str, path: Path) -> Any:
    """The values in YAML, read in one pass; InputError for what grows when it is read, or takes long."""
    lines = text.split("\n")
    long = len(text) > LONGEST_CONFIG or len(lines) > MOST_LINES or max(map(len, lines)) > LONGEST_LINE
    if long or text.count("${") > MOST_INTERPOLATIONS:
        raise InputError(f"{path} is too long for the configuration of a run")

    # OmegaConf's loader, a safe one, reads 1e-2 as a number, and leaves interpolations as they are. Its objects would
    # take most of the time, and are made only of what is kept.
    class Loader(get_yaml_loader()):  # type: ignore[misc]
        number = depth = 0

        def get_event(self) -> yaml.Event:
            """Take the next event, all of which come before anything is made of them."""
            event = super().get_event()
            self.number += 1
            if self.number > MOST_VALUES or (isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_VALUE):
                raise InputError(f"{path} has too many or too long values for the configuration of a run")
            self.depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or self.depth > DEEPEST_CONFIG:
                raise InputError(
                    f"{path} is not the configuration of a run: it holds YAML aliases, or is nested too deep"
                )
            return event

    return yaml.load(text, Loader)


def checkpoint_numbers(folder: Path) -> list[int]:
    """The numbers of the files checkpoint_N.pth in ``folder``, rising; other files are ignored."""
    names = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    matches = (re.fullmatch(CHECKPOINT, name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def find_checkpoint(run_dir: Path, ckpt: int = -1) -> Path:
    """Path of checkpoint number ``ckpt`` of a run, or of the highest for -1; other files are ignored.

    Raises:
        InputError: if there is none.
    """
    folder = Path(run_dir) / "checkpoints"
    numbers = checkpoint_numbers(folder)
    if not numbers:
        raise InputError(f"{folder} has no checkpoint_*.pth")
    number = numbers[-1] if ckpt == -1 else ckpt
    if number not in numbers:
        raise InputError(f"{folder} has no checkpoint_{number}.pth: eval.ckpt can be {', '.join(map(str, numbers))}")
    return folder / f"checkpoint_{number}.pth"


def named_checkpoint(path: str | Path, ckpt: int = -1) -> tuple[Path, int]:
    """The run and the number of the checkpoint that ``path`` is a file of, RUN/checkpoints/checkpoint_N.pth.

    Args:
        path: that, or something else, which comes back as it is, with ``ckpt``.
        ckpt: number asked for besides; -1 for none.

    Raises:
        InputError: if another number is asked for besides, or no run is around the file.
    """
    path = Path(path)
    match = re.fullmatch(CHECKPOINT, path.name)
    if not match or not (path.is_file() or path.parent.name == "checkpoints"):
        if path.is_file() and path.suffix != ".safetensors":
            raise InputError(f"{path} is a file: give a run, RUN/checkpoints/checkpoint_N.pth, or a .safetensors file")
        return path, ckpt
    folder, number = path.absolute().parent, int(match[1])
    if folder.name != "checkpoints":
        raise InputError(f"{path} is not below the checkpoints/ of a run, whose .hydra/config.yaml says what it is of")
    if ckpt not in (-1, number):
        raise InputError(f"checkpoint {ckpt} is asked for, but {path} is checkpoint {number}: leave one of them out")
    return path.parent.parent if path.parent.name == "checkpoints" else folder.parent, number


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, on the CPU: tensors and plain Python, nothing in it is executed.

    Scalars of numpy, which the published code leaves there, come back as Python numbers.

    Raises:
        InputError: if the file is missing, damaged, or holds anything else, which is then named.
    """
    try:
        check_size(path)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(STAND_INS):  # of old pickles
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # whose message has advice on running what is in the file
        found = what_is_refused(path)
        reason = f"it holds {found}; only tensors and plain values are read" if found else OTHER_PICKLE
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def check_size(path: Path) -> None:
    """Raise InputError for a checkpoint that is not whole, or that takes long or grows when it is read."""
    try:
        if not path.is_file():
            raise InputError(f"{path} cannot be read as a checkpoint: there is no such file")
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\3\4"  # as PyTorch tells; else from before its version 1.6, or no checkpoint
            file.seek(0)
            if not zipped:
                check_pickles_of_old_file(file.read(LARGEST_PICKLE + 1))
        if zipped:
            check_whole(path)
            with open_zip(path) as archive:
                entries = archive.infolist()
                if len({entry.filename.lower() for entry in entries}) < len(entries):  # one and the same to PyTorch
                    raise ValueError("the names of several of its entries differ in case alone")
                for entry in entries:
                    if entry.filename.lower().endswith(".pkl"):
                        with archive.open(entry) as member:
                            check_pickle(member.read(LARGEST_PICKLE + 1), len(entries))
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error


def check_whole(path: Path) -> None:
    """Raise InputError if a checkpoint is cut short or holds other bytes than were written, which torch overlooks.

    Also if it is compressed: no checkpoint is, and one that is may grow without bound.
    """
    try:
        with open_zip(path) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            damaged = None if compressed else archive.testzip()
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error
    if compressed:
        raise InputError(f"{path} cannot be read as a checkpoint: it is compressed")
    if damaged is not None:
        raise InputError(f"{path} cannot be read as a checkpoint: {damaged} in it is damaged")


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a configuration and named tensors."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_safetensors(path: Path) -> tuple[DictConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a file that ``python -m models.export`` wrote.

    Raises:
        InputError: if it is damaged or has no configuration.
    """
    try:
        with path.open("rb") as header:
            length = int.from_bytes(header.read(8), "little")
        if length > LARGEST_HEADER:
            raise InputError(f"{path} cannot be read: its header has {length:,} bytes, more than {LARGEST_HEADER:,}")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata.get("config")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if text is None:
        raise InputError(f"{path} holds no configuration: it was not written by python -m models.export")
    if metadata.get("sha256") != digest(text, tensors):
        raise InputError(f"{path} is damaged: its checksum is another")
    return parse_config(text, path), tensors

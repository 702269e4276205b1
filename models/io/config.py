"""Reading the configuration of a run, which is treated as untrusted data: nothing in it is executed or looked up."""

import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from datasets.options import MAX_IMAGE_SIZE, check_shape
from datasets.registry import all_data_options
from datasets.units import check_units
from models.create import model_options
from models.io.published import from_published, is_published
from sde import DEFAULT, create_process, process_options
from utils.errors import InputError
from utils.old_keys import update_old_keys
from utils.options import Option, check_section

log = logging.getLogger(__name__)

# What yaml raises, and what its constructors raise for a value that does not fit its tag, such as !!int ''.
BAD_YAML = (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
# Bounds on what is parsed. A real configuration has about 3,000 characters and 150 values, plus the names of the
# classes, of which data sets have up to 21,841, or the names and counts of up to 10,000.
MAX_CHARACTERS = 2**20
MAX_LINE_LENGTH = 2**16
MAX_VALUE_LENGTH = 2**12
MAX_DEPTH = 10  # nested sections
MAX_EVENTS = 24_000  # values, and beginnings and ends of sections and lists
MAX_LINES = 60_000
MAX_INTERPOLATIONS = 100
MAX_BITS = 1024  # of an integer: converting more to decimal digits takes long
REQUIRED = {"model": ("name",), "data": (), "sde": ("sigma_min", "sigma_max", "num_scales")}
REQUIRED_WITHOUT_SHAPE = ("image_size", "num_channels")  # of the section data, unless it has a shape


def load_config(run_dir: Path, max_image_size: int = MAX_IMAGE_SIZE) -> DictConfig:
    """Load the configuration of a run, with the keys of the published code translated to those of this code.

    Interpolations are refused, not evaluated.

    Args:
        run_dir: directory of the run.
        max_image_size: samples with more values than a colour image of this height and width are refused.

    Raises:
        InputError: if the file is missing, is not YAML, lacks a key that every run has, holds an interpolation, or has
            a value that this code does not support.
    """
    path = Path(run_dir) / ".hydra/config.yaml"
    if not path.is_file():
        raise InputError(f"{path} does not exist: {run_dir} is not a run directory")
    return parse_config(_read_text(path), path, max_image_size)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of a run, within the bounds above, as plain values.

    Raises:
        InputError: if it cannot be read, is not YAML, or is too long.
    """
    return _parse_yaml(_read_text(path), path)


def _read_text(path: Path) -> str:
    try:
        with path.open() as file:
            return file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def parse_config(text: str, path: Path, max_image_size: int = MAX_IMAGE_SIZE) -> DictConfig:
    """Parse the configuration of a run from YAML; see ``load_config``.

    Args:
        text: configuration in YAML.
        path: file that ``text`` is from, for error messages.
        max_image_size: see ``load_config``.
    """
    values = _parse_yaml(text, path)
    for section, keys in REQUIRED.items():
        part = values.get(section) if isinstance(values, dict) else None
        if section == "data" and not (isinstance(part, dict) and "shape" in part):
            keys = REQUIRED_WITHOUT_SHAPE
        for key in keys:
            if not isinstance(part, dict) or key not in part:
                raise InputError(f"{path} has no {section}.{key}: it is not the configuration of a run")
    try:
        cfg = from_published(values if is_published(values) else update_old_keys(values))
        if is_published(values):
            cfg = _drop_unknown_keys(cfg, path)
        if any(map(_is_unresolved, _leaves(cfg))):  # of the parsed strings: in the YAML text, escapes could hide it
            raise InputError("holds an interpolation, ${...}, or ???: write the value itself")
        check_loaded(cfg, max_image_size)
        return OmegaConf.create(cfg)
    except (AttributeError, InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path} holds what is no value of a configuration, such as a set or a date") from error


def _known_options(cfg: Mapping[str, Any]) -> dict[str, dict[str, Option]]:
    """Return the options of the sections that a network depends on."""
    process = cfg["sde"].get("name", DEFAULT)
    return {"model": model_options(cfg["model"]["name"]), "data": all_data_options(), "sde": process_options(process)}


def check_loaded(cfg: Mapping[str, Any], max_image_size: int = MAX_IMAGE_SIZE) -> None:
    """Check ``model``, ``data`` and ``sde`` of a loaded run, which may lack keys or have others.

    Raises:
        InputError: naming the key at fault.
    """
    for section, options in _known_options(cfg).items():
        own = {key: value for key, value in cfg[section].items() if key in options}
        check_section(own, {key: options[key] for key in own}, section)
    check_shape(cfg["data"], max_image_size)
    check_units(cfg["data"], create_process(cfg["sde"]))


def _drop_unknown_keys(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """Drop the keys of a published configuration that this code does not know, with a warning for each.

    A released configuration may hold keys that the public code does not have; the shapes of the tensors show whether
    the network is the same. Sections other than model, data and sde are dropped if they hold interpolations.
    """
    known = _known_options(cfg)
    kept = {}
    for section, part in cfg.items():
        if section in known:
            kept[section] = {key: value for key, value in part.items() if key in known[section]}
            for key in part:
                if key not in known[section]:
                    _warn_once(f"{path}: {section}.{key} is unknown here and ignored")
        elif not any(map(_is_unresolved, _leaves(part))):
            kept[section] = part
    return kept


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _is_unresolved(value: Any) -> bool:
    return isinstance(value, str) and ("${" in value or value == "???")


def _leaves(tree: Any) -> Iterator[Any]:
    """Yield all values in a tree of dictionaries and lists, and all keys."""
    if isinstance(tree, dict):
        tree = [*tree.keys(), *tree.values()]
    if isinstance(tree, list):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree


def _parse_yaml(text: str, path: Path) -> Any:
    """Parse YAML within the bounds above; raise InputError for what is not YAML."""
    try:
        values = _bounded_yaml(text, path)
    except InputError:
        raise
    except BAD_YAML as error:
        mark = getattr(error, "problem_mark", None)  # only the line: the file may be a link to one with secrets
        raise InputError(f"{path} cannot be read as YAML{f', line {mark.line + 1}' if mark else ''}") from error
    if any(isinstance(leaf, int) and leaf.bit_length() > MAX_BITS for leaf in _leaves(values)):
        raise InputError(f"{path} holds an integer of more than {MAX_BITS} bits")
    return values


def _bounded_yaml(text: str, path: Path) -> Any:
    """Parse YAML within the bounds above; raise InputError for text that would take much memory or time."""
    lines = text.split("\n")
    long = len(text) > MAX_CHARACTERS or len(lines) > MAX_LINES or max(map(len, lines)) > MAX_LINE_LENGTH
    if long or text.count("${") > MAX_INTERPOLATIONS:
        raise InputError(f"{path} is too long for the configuration of a run")

    # OmegaConf's loader is a safe loader that reads 1e-2 as a number and leaves interpolations as they are.
    class Loader(get_yaml_loader()):  # type: ignore[misc]
        number = depth = 0

        def get_event(self) -> yaml.Event:
            """Return the next parser event, or raise InputError before a value is constructed from too many."""
            event = super().get_event()
            self.number += 1
            if self.number > MAX_EVENTS or (
                isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_VALUE_LENGTH
            ):
                raise InputError(f"{path} has too many or too long values for the configuration of a run")
            self.depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or self.depth > MAX_DEPTH:
                raise InputError(
                    f"{path} is not the configuration of a run: it holds YAML aliases, or is nested too deep"
                )
            return event

    return yaml.load(text, Loader)

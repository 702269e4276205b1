"""Options of the command line whose value is a path: it is taken as it stands, not read by Hydra's grammar."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException

from cli.options import is_path_key
from utils.errors import InputError

# Sections whose keys depend on a choice: those of a resumed run may be others than those of the command line's default.
CHOSEN = ("data.", "model.", "logger.")


def read_override(argument: str) -> tuple[str, str, str]:
    """The parts of [+|++]KEY=VALUE: prefix, key and value; the key is empty if it is something else."""
    match = re.fullmatch(r"(\+{0,2})([\w./@][\w./@-]*)=(.*)", argument, re.DOTALL)
    return (match[1], match[2], match[3]) if match else ("", "", argument)


def is_multirun(arguments: Iterable[str]) -> bool:
    """Whether a command line asks for several jobs, so that commas separate values."""
    return any(
        argument in ("-m", "hydra.mode=MULTIRUN") or (len(argument) > 2 and "--multirun".startswith(argument))
        for argument in arguments
    )


def meant_path(value: str) -> str | None:
    """The path that a user means by ``value``, which is typed on the command line; None for null.

    A name that exists is that name, whatever is in it. Otherwise quotes around the whole are removed, as Hydra does,
    and ~ at the start is the home directory, which a shell does not put in the place of KEY=~/PATH.
    """
    if os.path.lexists(value):
        return value
    if value == "null":
        return None
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        with suppress(OverrideParseException):  # quotes at both ends that are not around the whole
            value = str(OverridesParser.create().parse_overrides([f"key={value}"])[0].value())
    return os.path.expanduser(value)


def quote_paths(arguments: list[str]) -> list[str]:
    """The ``arguments`` of a script as Hydra has to be given them, so that each path is taken as it stands.

    An interpolation, ${KEY}, stays one. With -m, commas separate paths, each of which is taken so, but for Hydra's own
    directories; where there are quotes or parentheses besides, Hydra's grammar decides.

    Raises:
        InputError: for a name that no configuration can hold, since it is not UTF-8 or reads as an interpolation.
    """
    several = is_multirun(arguments)
    resumed = any(read_override(argument)[1] == "resume" for argument in arguments)
    quoted = []
    for argument in arguments:
        prefix, key, value = read_override(argument)
        if resumed and key.startswith(CHOSEN):
            prefix = "++"
        if not is_path_key(key, value):
            quoted.append(f"{prefix}{key}={value}" if key else argument)
            continue
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{key}={value!r}: the name is not UTF-8: rename it, or make a link to it")
        if "${" in value and os.path.lexists(value):
            raise InputError(f"{key}={value}: ${{ stands for the value of a key: rename it, or make a link to it")
        if "${" not in value:
            whole = not several or key.startswith("hydra.") or os.path.lexists(value) or "," not in value
            if whole:
                value = _quoted(value)
            elif not re.search(r"['\"()]", value):
                value = ",".join(map(_quoted, value.split(",")))
        quoted.append(f"{prefix}{key}={value}" if key else argument)
    return quoted


def _quoted(value: str) -> str:
    path = meant_path(value)
    return "null" if path is None else QuotedString(path, Quote.double).with_quotes()

"""Command-line options whose value is a path: quoted for Hydra, so that its grammar does not change them."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException

from cli.options import is_path_key
from utils.errors import InputError

# Sections whose keys depend on a choice: a resumed run may have keys that the command line's default choice lacks.
CHOSEN = ("data.", "model.", "logger.")


def read_override(argument: str) -> tuple[str, str, str]:
    """Split [+|++]KEY=VALUE into prefix, key and value; the key is empty if ``argument`` is not of this form."""
    match = re.fullmatch(r"(\+{0,2})([\w./@][\w./@-]*)=(.*)", argument, re.DOTALL)
    return (match[1], match[2], match[3]) if match else ("", "", argument)


def is_multirun(arguments: Iterable[str]) -> bool:
    """Return whether a command line starts a multirun, in which commas separate values."""
    return any(
        argument in ("-m", "hydra.mode=MULTIRUN") or (len(argument) > 2 and "--multirun".startswith(argument))
        for argument in arguments
    )


def parse_path(value: str) -> str | None:
    """Return the path for a ``value`` typed on the command line; None for null.

    The name of an existing file is returned unchanged. Otherwise quotes around the whole are removed, as Hydra does,
    and a leading ~ is expanded, which a shell does not do in KEY=~/PATH.
    """
    if os.path.lexists(value):
        return value
    if value == "null":
        return None
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        with suppress(OverrideParseException):  # the two quotes are not a pair
            value = str(OverridesParser.create().parse_overrides([f"key={value}"])[0].value())
    return os.path.expanduser(value)


def quote_paths(arguments: list[str]) -> list[str]:
    """Quote the paths in the ``arguments`` of a script, so that Hydra passes each unchanged.

    Interpolations, ${KEY}, stay interpolations. With -m, commas separate paths, each of which is quoted, except in
    Hydra's own directories; a value with quotes or parentheses is left to Hydra's grammar.

    Raises:
        InputError: for a name that a configuration cannot hold, because it is not UTF-8 or reads as an interpolation.
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
    path = parse_path(value)
    return "null" if path is None else QuotedString(path, Quote.double).with_quotes()

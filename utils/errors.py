"""Errors with a message for the user; the entry points show it as one line, without a traceback."""

import argparse
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import NoReturn

# Control, formatting (also of the direction of text) and surrogate characters, separators of lines and paragraphs.
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


class UserError(Exception):
    """Its message alone tells the user what happened and what to do."""


class InputError(UserError, ValueError):
    """Bad configuration, argument or file: the message names the key or file and says what would be right."""


class TrainingError(UserError, RuntimeError):
    """A run that cannot go on, such as one with a non-finite loss."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file that the disk did not take, which an OSError of a write does not.

    Raises:
        UserError: for an OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the name ``path`` at the end, whole; after an exception it is removed.

    Raises:
        UserError: for an OSError inside, naming ``path``.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # of one process at a time
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def printable(text: str) -> str:
    """Return ``text`` without what a file or its name could tell a terminal to do.

    A line break or tab becomes a space, and any other control, formatting or bidirectional character its escape, such
    as \\x1b.
    """
    if text.isprintable():
        return text
    text = re.sub(r"[\t-\r\x85]+", " ", text)
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in UNPRINTABLE else c for c in text)


class PrintableFormatter(logging.Formatter):
    """Formats a record as ``logging.Formatter`` does, each of its lines being ``printable``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of ``record``; what it says of a path or an error stays in one line."""
        if isinstance(record.args, tuple):
            one_line = [printable(str(a)) if isinstance(a, PurePath | BaseException) else a for a in record.args]
            record = logging.makeLogRecord({**record.__dict__, "args": tuple(one_line)})
        return "\n".join(map(printable, super().format(record).split("\n")))


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors, which repeat what was typed, are ``printable``."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to use the program, and exit."""
        super().error(printable(message))

"""Errors that are shown as one line without a traceback, atomic writing of files, and printable text."""

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
    """An error whose message, without a traceback, tells the user what happened and what to do."""


class InputError(UserError, ValueError):
    """A bad configuration, argument or file; the message names the key or file and what would be right."""


class TrainingError(UserError, RuntimeError):
    """An error that ends a training run, such as a loss that is not finite."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an OSError inside the context, which need not name the file, to an error that names ``path``.

    Raises:
        UserError: for an OSError inside the context.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that is renamed to ``path`` at the end, or removed after an exception.

    Raises:
        UserError: for an OSError inside the context, naming ``path``.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # only one process may write ``path`` at a time
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def printable(text: str) -> str:
    """Return ``text`` without characters that control a terminal.

    A line break or tab becomes a space, and any other control, formatting or bidirectional character its escape, such
    as \\x1b.
    """
    if text.isprintable():
        return text
    text = re.sub(r"[\t-\r\x85]+", " ", text)
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in UNPRINTABLE else c for c in text)


class PrintableFormatter(logging.Formatter):
    """A formatter of log records whose lines are ``printable``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of ``record``, with paths and errors in its arguments on one line each."""
        if isinstance(record.args, tuple):
            one_line = [printable(str(a)) if isinstance(a, PurePath | BaseException) else a for a in record.args]
            record = logging.makeLogRecord({**record.__dict__, "args": tuple(one_line)})
        return "\n".join(map(printable, super().format(record).split("\n")))


class ArgumentParser(argparse.ArgumentParser):
    """A parser of arguments whose errors, which repeat what was typed, are ``printable``."""

    def error(self, message: str) -> NoReturn:
        """Print the error and the usage of the program, and exit."""
        super().error(printable(message))

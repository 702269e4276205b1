"""Errors with a message for the user; the doors show it as one line, without a traceback."""

import logging
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Control, formatting (also of the direction of text) and surrogate characters, separators of lines and paragraphs.
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


class CleanError(Exception):
    """Its message alone tells the user what happened and what to do."""


class InputError(CleanError, ValueError):
    """Bad configuration, argument or file: the message names the key or file and says what would be right."""


class TrainingError(CleanError, RuntimeError):
    """A run that cannot go on, such as one with a non-finite loss."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file that the disk did not take, which an OSError of a write does not.

    Raises:
        CleanError: for an OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise CleanError(f"{path} cannot be written: {error.strerror or error}") from error


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
        """Return the text of ``record``."""
        return "\n".join(map(printable, super().format(record).split("\n")))

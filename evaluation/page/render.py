"""The page as HTML: the templates, and what keeps a run from running anything in the browser.

Text is escaped, and control characters and those that change the direction of text are shown as escapes. The policy of
the page forbids every request, and all scripts but the two of this project, by their SHA-256.
"""

import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.errors import InputError, printable, replacing

HERE = Path(__file__).parent
MARKER = "<!-- written by python -m evaluation.page -->"
START = f"<!doctype html>\n{MARKER}\n"


def render(template: str, title: str, index: list[tuple[str, str]], contents: Mapping[str, Any]) -> str:
    """Return the HTML of a page.

    Args:
        template: name of the template.
        title: title of the page.
        index: identifier and name of each section.
        contents: variables of the template.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True
    )
    has_charts = bool(contents["charts"] or contents["results_chart"])
    scripts = [*([_plotly()] if has_charts else []), _own("page.js")]
    return environment.get_template(template).render(
        {
            **contents,
            "marker": MARKER,
            "title": title,
            "index": index,
            "policy": _policy(scripts),
            "css": _own("page.css"),
            "scripts": scripts,
            "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        }
    )


def write_page(path: Path, html: str) -> None:
    """Write a page atomically; an earlier page there is replaced.

    Raises:
        InputError: if ``path`` is another file.
    """
    if path.exists() or path.is_symlink():
        ours = False
        if path.is_file():  # and no pipe, which would be waited for
            with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
                ours = file.read(len(START)) == START
        if not ours:
            raise InputError(f"{path} exists, and is no page of evaluation.page: choose another --output")
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _shown(value: object) -> object:
    """Return what a template shows for a value: text with line breaks, but without other control characters."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(printable, value.split("\n")))


def _policy(scripts: list[str]) -> str:
    """Return a content security policy that allows these scripts, and no request."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # a slow import

    return get_plotlyjs().replace("\r\n", "\n")


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")

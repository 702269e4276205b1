"""Names of models on the Hugging Face Hub: hf://USER/NAME[@REVISION][/FILE]."""

import re
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from urllib.parse import quote, unquote

from utils.errors import InputError

SCHEME = re.compile(r"^hf:/{1,2}(?!/)")  # pathlib makes one slash of two
NAME = re.compile(SCHEME.pattern + r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<file>.+?))?/?")


@dataclass(frozen=True)
class HubName:
    """Place of a file or directory on the Hub.

    Attributes:
        repo: USER/NAME of the model.
        revision: branch, tag or commit.
        file: path of the file or directory in the model; empty for all of it.
    """

    repo: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        return "/".join([f"hf://{self.repo}@{quote(self.revision, safe='')}", *filter(None, [self.file])])


def hub_text(path: str | PurePath) -> str:
    """Return the name of a model on the Hub with both slashes of hf://, of which pathlib keeps one."""
    return SCHEME.sub("hf://", str(path), count=1)


def on_hub(path: str | PurePath) -> bool:
    """Tell whether ``path`` is the name of a model on the Hub."""
    return SCHEME.match(str(path)) is not None


def parse_hub_name(path: str | PurePath) -> HubName:
    """Read the name of a model on the Hub, in which a slash of the revision is written %2F; see ``on_hub``.

    Raises:
        InputError: naming ``path``, if it is none.
    """
    path = hub_text(path)
    match = NAME.fullmatch(path)
    if match is None or ".." in PurePosixPath(match["file"] or "").parts:
        wanted = "hf://USER/NAME, hf://USER/NAME@REVISION, or one of these and /FILE"
        raise InputError(f"{path}: a model on the Hub is written {wanted}")
    return HubName(match["repo"], unquote(match["revision"] or "main"), match["file"] or "")

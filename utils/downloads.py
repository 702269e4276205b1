"""Download of tar archives, which are checked, compared with their recorded checksum and unpacked safely.

Google Drive and plain addresses are fetched by gdown. No published checksum is known, so that of the first download is
recorded and compared from then on. The checks of an archive before it is unpacked are our own: ``tarfile``'s filter
refuses members that would lie or point outside, but not an archive that claims more than the disk has, hard links to
nothing, headers of gigabytes, or names that are one file on some disks.
"""

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from utils.errors import InputError, UserError

# What tarfile and the libraries below it raise on damaged data.
DAMAGE = (EOFError, OSError, ValueError, KeyError, OverflowError, RecursionError, zlib.error, lzma.LZMAError)
MAX_MEMBERS = 2_000_000  # of an archive; that of ImageNet's training images has 1.3 million
MAX_DEPTH = 32  # nested folders
MAX_NAME = 1024  # bytes of the path of a member
MAX_HEADER = 2**20  # bytes of an extension header, which tarfile reads as a whole
EXTRA_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class DownloadError(UserError):
    """A file that could not be downloaded, or is not what it should be."""


class _Member(tarfile.TarInfo):
    """A member of an archive, refused if its extension headers are longer than any has to be."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type in EXTRA_HEADERS and member.size > MAX_HEADER:
            raise ValueError(f"a header in it has {member.size:,} bytes")
        return member


def fetch_folder(url: str, archive: Path, target: Path, sums: Path, find: Callable[[Path], Path]) -> None:
    """Download a tar archive, unless a person has put it there, and unpack a folder of it.

    Args:
        url: address of the archive.
        archive: path of the archive; removed at the end, unless it was there before.
        target: folder to make, on the same disk; appears when it is complete.
        sums: record of SHA-256 sums, see ``check_recorded``.
        find: function that returns, given the folder of the unpacked archive, the one in it that becomes ``target``; it
            raises DownloadError if the contents are not what they should be.

    Raises:
        UserError: if the archive cannot be downloaded or is not what it should be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    placed = archive.exists()
    try:
        if not placed:
            fetch(url, archive)
        check_archive(archive)
    except (DownloadError, InputError) as error:
        if not placed:
            archive.unlink(missing_ok=True)
        if isinstance(error, InputError):
            raise
        raise DownloadError(f"{error}. Open {url} in a browser, save the file as {archive}, run this again") from error
    line = check_recorded(archive, sums)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        unpack(archive, Path(temporary))
        found = find(Path(temporary))
        with sums.open("a") as file:  # before the folder appears: one that is there has its sum recorded
            file.write(line)
        found.rename(target)
    if not placed:
        archive.unlink()


def google_drive(identity: str) -> str:
    """Return the address of a file on Google Drive."""
    return f"https://drive.google.com/uc?id={identity}"


def fetch(url: str, path: Path) -> None:
    """Download ``url`` to ``path``, which appears when it is complete; Google Drive's confirmation page is followed.

    Raises:
        DownloadError: if the host does not give the file.
    """
    import gdown  # only where used: it brings an HTTP client

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        gdown.download(url, str(temporary), use_cookies=False, timeout=60)
        temporary.rename(path)
    except (gdown.exceptions.DownloadError, OSError, RuntimeError, ValueError) as error:
        raise DownloadError(f"{url} could not be downloaded: {' '.join(str(error).split())}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_archive(path: Path) -> None:
    """Check that ``path`` is a complete tar archive that can be unpacked beside it.

    Raises:
        DownloadError: if it is not complete.
        InputError: if it is not safe to unpack, such as a member with too long a name or a link without a target.
        UserError: if its contents do not fit on the disk.
    """
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith(b"<"):
        raise DownloadError(f"{path} is an HTML page and not an archive: the host answered with a web page")
    try:
        with tarfile.open(path, tarinfo=_Member) as archive:
            _check_members(archive, path)
    except InputError:
        raise
    except (tarfile.TarError, *DAMAGE) as error:
        raise DownloadError(f"{path} is not a whole tar archive: {' '.join(str(error).split())}") from error


def _check_members(archive: tarfile.TarFile, path: Path) -> None:
    """Check the header of each member, see ``check_archive``, before its contents, which may be huge, are read."""

    def refuse(reason: str) -> NoReturn:
        raise InputError(f"{path} is not safe to unpack: {reason}")

    free, size = shutil.disk_usage(path.parent).free, 0
    names: dict[str, str] = {}
    for number, member in enumerate(archive):
        size += member.size
        if size > free:
            raise UserError(f"{path} needs {size / 1e9:,.1f} GB unpacked, the disk has {free / 1e9:,.1f} GB left")
        if number >= MAX_MEMBERS:
            refuse(f"it has more than {MAX_MEMBERS:,} members")
        if len(os.fsencode(member.name)) > MAX_NAME or member.name.count("/") > MAX_DEPTH:
            refuse(f"the path of a member is too long: {member.name[:40]}...")
        name = os.path.normpath(member.name)
        if names.setdefault(name.casefold(), name) != name:
            refuse(f"{name} and {names[name.casefold()]} are one file on some disks")
        if member.islnk() and os.path.normpath(member.linkname).casefold() not in names:
            refuse(f"{name} links to {member.linkname}, which is not before it")


def check_recorded(path: Path, sums: Path) -> str:
    """Compare the SHA-256 of ``path`` with the one recorded for its name, if there is one.

    Args:
        path: path of the file.
        sums: record in the format of ``sha256sum``, which need not exist and is only read.

    Returns:
        Line to add to the record, empty if it is there already.

    Raises:
        DownloadError: if another sum is recorded for this name.
    """
    with path.open("rb") as file:
        line = f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n"
    recorded = sums.read_text().splitlines(keepends=True) if sums.exists() else []
    known = [other for other in recorded if other.split()[-1:] == [path.name]]
    if known and line not in known:
        raise DownloadError(
            f"{path} is not the file that {sums} recorded for this name: remove it, "
            "or its line there if you trust the new one"
        )
    return "" if known else line


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar archive inside ``folder``.

    Raises:
        InputError: if a member would lie or point outside of it, or is neither file nor folder nor link.
        DownloadError: if it cannot be unpacked, or this Python is too old to unpack it safely.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError(f"{path} was not unpacked: unpacking safely needs Python 3.11.4 or newer")
    try:
        with tarfile.open(path, tarinfo=_Member) as archive:
            archive.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise InputError(f"{path} is not safe to unpack: {error}") from error
    except (tarfile.TarError, *DAMAGE) as error:
        raise DownloadError(f"{path} cannot be unpacked: {error}") from error

"""Search for the image files below a folder, each once and in a fixed order, among links and other files."""

import glob
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import InputError, printable

log = logging.getLogger(__name__)

# The decoders of Pillow that are used, and the suffixes of their files. The others are not used: EPS runs Ghostscript,
# IPTC opens its contents by any decoder, WMF, EMF, BUFR, GRIB and HDF5 need a handler, MPEG decodes nothing, FITS does
# not define which value is white, IM is deprecated, and IMT, MCIDAS, SPIDER and XVTHUMB have no suffix.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "PSD": (".psd",),
    "SGI": (".sgi", ".bw", ".rgb", ".rgba"),
    "SUN": (".ras",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "MSP": (".msp",),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
    "PIXAR": (".pxr",),
}
# Formats without a magic number, which are only tried on files with one of these suffixes.
UNMARKED_FORMATS: dict[str, tuple[str, ...]] = {
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "DIB": (".dib",),
    "FLI": (".fli", ".flc"),
    "GBR": (".gbr",),
    "PCD": (".pcd",),
}
SUFFIXES = frozenset(s for formats in (FORMATS, UNMARKED_FORMATS) for suffixes in formats.values() for s in suffixes)

DANGLING = "links that lead nowhere"
AGAIN = "links to what is there already or to a folder above"
SPECIAL = "pipes, sockets or devices"
UNREADABLE = "folders that cannot be read"
HIDDEN = "hidden images"
OUTPUT = "folders or files that this project wrote"
# Start of the file `logs` in an output directory: a line like 2026-01-31 23:59:59,123 INFO
FIRST_OF_LOGS = rb"\A\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(,\d{3})? [A-Z]+ "


@dataclass
class Scan:
    """The result of a search below a folder.

    Attributes:
        files: paths of the image files, by suffix, sorted.
        left_out: paths of possible images that are left out, by reason.
        others: number of files of other kinds, by suffix.
    """

    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)

    def leave_out(self, what: str, path: str) -> None:
        """Record a ``path`` that is left out for the reason ``what``."""
        self.left_out.setdefault(what, []).append(path)

    def log(self, folder: Path) -> None:
        """Log the files that were left out of ``folder``."""
        parts = []
        for what, paths in self.left_out.items():
            names = [_shown(os.path.relpath(path, folder)) for path in sorted(paths)[:3]]
            parts.append(f"{len(paths)} {what} ({', '.join(names)}{', ...' * (len(paths) > 3)})")
        if parts:
            log.warning("left out of %s: %s", folder, "; ".join(parts))
        if self.others:
            log.info("%d files of other kinds ignored: %s", self.others.total(), self.kinds())

    def kinds(self) -> str:
        """Return a text with the most common suffixes of other files and the number of each."""
        kinds = [f"{number} {printable(suffix) or 'without a suffix'}" for suffix, number in self.others.most_common(8)]
        return ", ".join([*kinds, *["..."] * (len(self.others) > 8)])


def find_images(folder: Path) -> list[Path]:
    """Return the image files in ``folder`` and below, sorted by their path; see ``scan_folder``.

    Raises:
        InputError: if the folder cannot be read.
    """
    found = scan_folder(folder)
    found.log(folder)
    return found.files


def scan_folder(folder: Path, skip_outputs: bool = False, outputs: Iterable[Path] = ()) -> Scan:
    """Search for image files, by their suffix, in ``folder`` and below.

    Links are followed, except to a folder above. A file that is reached twice counts once, under its real path if that
    is below ``folder``. Only regular files count; names that begin with a dot do not, and folders that cannot be read
    are left out.

    Args:
        folder: folder to search.
        skip_outputs: whether to leave out output of the scripts of this project: runs, drawn images, evaluations.
        outputs: further folders to leave out as output.

    Raises:
        InputError: if ``folder`` itself cannot be read.
    """
    return _Search(folder, skip_outputs, outputs).found


class _Search:
    """A search of real folders first and then of the targets of links, so that files are found by their real paths."""

    def __init__(self, folder: Path, skip_outputs: bool, outputs: Iterable[Path]) -> None:
        self.found = Scan()
        self.skip_outputs = skip_outputs
        self.skipped = {os.path.realpath(path) for path in outputs}  # real paths that are left out as output
        self.above: set[str] = set()  # real paths of the folders above the starts of the searches
        self.folders: set[tuple[int, int]] = set()
        self.paths: list[str] = []
        self.links: list[str] = []
        self.file_links: list[str] = []
        try:
            os.listdir(folder)
        except OSError as error:
            raise InputError(f"{folder} cannot be read: {error.strerror}") from error
        self._walk(str(folder), at_top=True)
        while self.links:
            links, self.links = sorted((os.path.realpath(link), link) for link in self.links), []
            for target, link in links:  # sorted: a folder comes before its subfolders
                self._follow(link, target)
        self._add_file_links()
        self.found.files = [Path(path) for path in sorted(self.paths)]

    def _add_file_links(self) -> None:
        """Add the images that are targets of links, unless they were found already."""
        targets: set[str] = set()
        for link in sorted(self.file_links):
            target = os.path.realpath(link)
            folder, name = os.path.split(target)
            status = os.stat(folder)
            searched = (status.st_dev, status.st_ino) in self.folders
            if self._is_output(target):
                self.found.leave_out(OUTPUT, link)
            elif target in targets or (searched and _is_image(name) and not name.startswith(".")):
                self.found.leave_out(AGAIN, link)
            else:
                targets.add(target)
                self.paths.append(link)

    def _follow(self, link: str, target: str) -> None:
        """Search the folder ``target`` of a link, unless it was searched before or is above the start of a search."""
        if self._is_output(target):
            self.found.leave_out(OUTPUT, link)
        elif target in self.above or not self._walk(link):
            self.found.leave_out(AGAIN, link)

    def _is_output(self, target: str) -> bool:
        """Return whether a real path is left out as output of this project, or is below such a path."""
        return not self.skipped.isdisjoint((target, *map(str, Path(target).parents)))

    def _walk(self, start: str, at_top: bool = False) -> bool:
        """Search ``start`` and the real folders below; return whether any of them was new.

        With ``at_top``, ``start`` is searched even if it is an output directory, without the output in it.
        """
        new, pending = False, [start]
        real_start = os.path.realpath(start)
        self.above.update(map(str, Path(real_start).parents))
        while pending:
            folder = pending.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in self.folders:  # by a link, or mounted twice
                    if folder != start:
                        self.found.leave_out(AGAIN, folder)
                    continue
                with os.scandir(folder) as listing:
                    entries = list(listing)
                # Added after the listing: the files of a folder that cannot be listed may be found through a link.
                self.folders.add((status.st_dev, status.st_ino))
            except OSError:
                self.found.leave_out(UNREADABLE, folder)
                new = True
                continue
            new = True
            real = real_start + folder[len(start) :]
            names = {entry.name for entry in entries} if self.skip_outputs else set()
            outputs: set[str] = set()
            if real in self.skipped or _is_output_dir(folder, names):
                if not (at_top and folder == start):
                    self.skipped.add(real)
                    self.found.leave_out(OUTPUT, folder)
                    continue
                outputs = _output_names(folder, names)
            for entry in entries:
                if entry.name in outputs:
                    self.found.leave_out(OUTPUT, entry.path)
                    self.skipped.add(os.path.join(real, entry.name))
                else:
                    self._add(entry, pending)
        return new

    def _add(self, entry: os.DirEntry[str], pending: list[str]) -> None:
        """Record an ``entry`` of a folder: as an image, a folder to search, a link, another file, or left out."""
        is_image = _is_image(entry.name)
        try:
            if entry.name.startswith("."):
                if is_image and entry.is_file():
                    self.found.leave_out(HIDDEN, entry.path)
                return
            link = entry.is_symlink()
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
                return
            # A regular file is known from the listing, without a call of stat for each.
            mode = stat.S_IFREG if not link and entry.is_file() else os.stat(entry.path).st_mode
        except OSError:
            self.found.leave_out(DANGLING, entry.path)
            return
        if stat.S_ISDIR(mode):
            self.links.append(entry.path)
        elif not stat.S_ISREG(mode):
            self.found.leave_out(SPECIAL, entry.path)
        elif not is_image:
            self.found.others[os.path.splitext(entry.name)[1].lower()] += 1
        elif link:
            self.file_links.append(entry.path)
        else:
            self.paths.append(entry.path)


def _shown(path: str) -> str:
    """Return a path as printable text; only the end of a long one."""
    text = printable(path)
    return text if len(text) <= 200 else f"...{text[-200:]}"


def _is_image(name: str) -> bool:
    """Return whether a file of this name is an image, by its suffix."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_output_dir(folder: str, names: set[str]) -> bool:
    """Return whether a ``folder`` with these names in it is an output directory of a script of this project."""
    if ".hydra" in names and names & {"checkpoints", "checkpoints-meta", "metrics.jsonl", "samples", "logs"}:
        return os.path.isfile(os.path.join(folder, ".hydra", "config.yaml"))
    if {"data.png", "logs"} <= names:  # training.n_iters=0
        return _has_line(os.path.join(folder, "logs"), FIRST_OF_LOGS)
    return any(_names_a_run(os.path.join(folder, name)) for name in ("vis.yaml", "eval.yaml") if name in names)


def _output_names(folder: str, names: set[str]) -> set[str]:
    """Return those ``names`` in a ``folder`` under which the scripts of this project write images."""
    outputs = names & {"checkpoints", "checkpoints-meta", "tensorboard", "wandb", "data.png", "loss.png"}
    if "samples" in names and glob.glob(os.path.join(glob.escape(folder), "samples", "iter_*")):
        outputs.add("samples")
    if "eval.yaml" in names and _names_a_run(os.path.join(folder, "eval.yaml")):
        outputs |= names & {"images"}
    if "vis.yaml" in names and _names_a_run(os.path.join(folder, "vis.yaml")):
        outputs |= {name for name in names if re.fullmatch(r"(samples_\d+|trajectory)\.\w+|single", name)}
    return outputs


def _names_a_run(path: str) -> bool:
    """Return whether ``path`` is a configuration of run_vis.py or run_eval.py, by its key load_dir."""
    return _has_line(path, rb"^load_dir:")


def _has_line(path: str, pattern: bytes) -> bool:
    """Return whether ``pattern``, multi-line, is found in the first 64 KiB of the regular file ``path``."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return re.search(pattern, file.read(2**16), re.MULTILINE) is not None
    except OSError:
        return False

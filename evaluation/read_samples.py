"""Reading of generated images and their labels from files of this and other programs."""

import logging
from pathlib import Path

import numpy as np

from datasets.image_io import UnreadableError, find_images, read_image
from utils.archives import BROKEN, ArrayFile, check_memory
from utils.errors import InputError

log = logging.getLogger(__name__)

IMAGES = "drawn images, an .npz or .npy file"


def read_samples(path: Path, size: int, num_channels: int) -> np.ndarray:
    """Read generated images from files, uint8 (N, size, size, num_channels).

    Args:
        path: an .npz file with ``samples``, as run_vis.py writes it, or ``arr_0``, as guided-diffusion does; an .npy
            file; or a folder of such files, or of image files. Links, pipes and devices among them are treated as in a
            data set.

    Raises:
        InputError: naming the file that is missing, damaged, or has other contents, and the contents.
    """
    if not path.exists():
        raise InputError(f"metrics.samples_path={path} does not exist")
    if path.is_dir():
        found = sorted([*path.glob("*.npz"), *path.glob("*.npy")])
        once: dict[Path, Path] = {}
        for file in found:
            if file.is_file():
                once.setdefault(file.resolve(), file)
        files = list(once.values())
        if len(files) < len(found):
            log.warning("%d of the arrays in %s left out: no files, or links to others", len(found) - len(files), path)
    else:
        files = [path]
    chosen = [_find_images_in(file, size, num_channels) for file in files]
    try:
        check_memory(sum(stored.size(name) for stored, name in chosen))
    except ValueError as error:
        raise InputError(f"metrics.samples_path={path} cannot be read: {error}") from error
    parts = [read_array(stored, name) for stored, name in chosen]
    if not files:
        files = find_images(path)
        for file in files:
            try:
                image = read_image(file, None, num_channels)
            except UnreadableError as error:
                raise InputError(f"{file} cannot be read: {error}") from error
            if image.shape != (size, size, num_channels):
                raise InputError(f"{file} is an image of {image.shape}, the run has {(size, size, num_channels)}")
            parts.append(image[None])
    if not parts:
        raise InputError(f"metrics.samples_path={path} has no .npz, no .npy and no images")
    return np.concatenate(parts)


def _find_images_in(path: Path, size: int, num_channels: int) -> tuple[ArrayFile, str]:
    """Find the images in an array file, and check their type and shape before they are read.

    Returns:
        The file, and the name of the array.

    Raises:
        InputError: naming the file and its contents, if they are not images of this size.
    """
    stored = open_arrays(path, IMAGES)
    name = next((name for name in ("", "samples", "arr_0") if name in stored.arrays), None)
    if name is None:
        hint = ": statistics are for metrics.reference" * ({"mu", "sigma"} <= stored.arrays.keys())
        raise InputError(f"{path}: found arrays {array_names(stored)}; need samples, or arr_0{hint}")
    shape, dtype = stored.arrays[name]
    wanted = (size, size, num_channels)
    if dtype != np.uint8 or shape[1:] != wanted:
        hint = ""
        if len(shape) != 4:
            hint = f", in an array of {len(shape)} axes and not (N, H, W, C)"
        elif shape[1:] == (num_channels, size, size):
            hint = ": the channels have to come last"
        elif dtype != np.uint8:
            hint = ": need whole numbers of type uint8, 0 for black to 255 for white"
        raise InputError(f"{path} holds {dtype} {shape[1:]}, the run has uint8 {wanted}{hint}")
    return stored, name


def read_labels(path: Path, number: int) -> np.ndarray:
    """Read the labels of ``number`` images in a file, int64 (number,); -1 for each if there are none.

    Args:
        path: file or folder, as for ``read_samples``; only an .npz file has labels, ``arr_1`` in guided-diffusion.
        number: number of images in the file.

    Raises:
        InputError: naming the file, if its labels are not one whole number for each image.
    """
    stored = open_arrays(path, IMAGES) if path.is_file() else None
    arrays = stored.arrays if stored else {}
    name = "labels" if "samples" in arrays or "labels" in arrays else "arr_1"
    if stored is None or name not in arrays:
        return np.full(number, -1)
    shape, dtype = arrays[name]
    if dtype.kind not in "iu" or shape != (number,):
        raise InputError(f"{path}: {name} is {dtype} {shape}, need a whole number for each of {number} images")
    return read_array(stored, name).astype(np.int64)


def open_arrays(path: Path, what: str) -> ArrayFile:
    """Open an array file without reading its arrays; ``what`` describes it in error messages."""
    try:
        if not path.is_file():
            raise InputError(f"{path} is neither a file nor a folder")
        return ArrayFile(path)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path} cannot be read as {what}: {error}") from error


def read_array(stored: ArrayFile, name: str) -> np.ndarray:
    """Read the array ``name``, or raise InputError, naming the file."""
    try:
        return stored.read(name)
    except BROKEN as error:
        raise InputError(f"{stored.path} cannot be read: {error}") from error


def array_names(stored: ArrayFile) -> str:
    """Return the names of the first arrays in a file, for error messages."""
    names = [name or "one without a name" for name in stored.arrays]
    return f"{', '.join(names[:8])}{', ...' * (len(names) > 8)}" if names else "none"

"""How near drawn images are to real ones: FID, KID, Inception score, precision and recall, by torch-fidelity."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from datasets import ImageDataset
from datasets.image_io import UnreadableError, find_images, read_image
from evaluation.features import Features, to_pixels
from models.io.safetensors import digest
from utils.archives import BROKEN, ArrayFile, check_memory
from utils.errors import InputError

log = logging.getLogger(__name__)

KEPT = 50_000  # features of real images that are kept, for KID, precision and recall
PAPERS_USE = 50_000  # drawn images
BATCH = 100
IMAGES = "drawn images, an .npz or .npy file"

METRICS = ("fid", "kid", "inception_score", "precision_recall")


@dataclass(frozen=True)
class Reference:
    """What is known of the real images.

    Attributes:
        mean, covariance: of the features of all, float64 (d,) and (d, d).
        features: of at most ``KEPT`` of them, chosen at random with a fixed seed, float32 (n, d); None if only the mean
            and covariance are known.
        protocol: which images and features, and their hashes.
    """

    mean: np.ndarray
    covariance: np.ndarray
    features: Tensor | None
    protocol: dict[str, Any]


def reference(images: ImageDataset, dataset: str, features: Features, cache: Path) -> Reference:
    """Statistics of the training images, from the ``cache`` folder or computed and put there, with a progress bar.

    Their file is named by the hash of the images and of the features.
    """
    protocol = {
        "images": f"{dataset}, training split",
        "number": len(images),
        "images_sha256": _hash(images),
        "features": features.name,
        "features_sha256": features.sha256,
    }
    key = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    path = cache / f"{dataset}-{features.name}-{key[:16]}.safetensors"
    protocol["statistics"] = path.name
    stored = _read(path, key)
    if stored is None:
        stored = _statistics(images, features)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            save_file(stored, temporary, metadata={"key": key, "sha256": digest(key, stored)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be written, the statistics are not kept: %s", path, error)
        finally:
            temporary.unlink(missing_ok=True)
    protocol["statistics_sha256"] = digest(key, stored)
    return Reference(stored["mean"].numpy(), stored["covariance"].numpy(), stored["features"], protocol)


def _hash(images: ImageDataset) -> str:
    digest = hashlib.sha256(repr((tuple(images.data.shape), images.levels)).encode())
    for part in images.data.split(4096):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in ("mean", "covariance", "features")}
        whole = metadata.get("key") == key and metadata.get("sha256") == digest(key, stored)
        return stored if whole else None
    except (OSError, SafetensorError):
        return None  # not there, or damaged: computed again


def _statistics(images: ImageDataset, features: Features) -> dict[str, Tensor]:
    """Mean and covariance by sums about the mean of the first batch, in float64, a batch at a time."""
    n = len(images)
    kept = set(np.random.default_rng(0).permutation(n)[:KEPT].tolist())
    center, total, products = (torch.zeros(0, dtype=torch.float64) for _ in range(3))
    chosen = []
    for part in tqdm(range(0, n, BATCH), desc="real images", unit="batch", disable=None):
        own, _ = features(to_pixels(images.data[part : part + BATCH], images.levels))
        chosen.append(own[[i in kept for i in range(part, part + len(own))]])
        own = own.double()
        if part == 0:
            center = own.mean(0)
            total, products = torch.zeros_like(center), torch.zeros(len(center), len(center), dtype=torch.float64)
        own = own - center
        total += own.sum(0)
        products += own.T @ own
    covariance = (products - torch.outer(total, total) / n) / (n - 1)
    return {"mean": center + total / n, "covariance": covariance, "features": torch.cat(chosen)}


def read_samples(path: Path, size: int, num_channels: int) -> np.ndarray:
    """Images drawn before: uint8 (N, size, size, num_channels).

    Args:
        path: an .npz file with ``samples``, as run_vis.py writes it, or ``arr_0``, as guided-diffusion does; an .npy
            file; or a folder of such files, or of image files. Links, pipes and devices among them are treated as in a
            data set.

    Raises:
        InputError: naming the file that is missing, damaged, or holds something else, and what that is.
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
    parts = [_read_array(stored, name) for stored, name in chosen]
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
    """Find the images in an array file, and check what they are before they are read.

    Returns:
        The file, and the name of the array.

    Raises:
        InputError: naming the file, and what it holds instead.
    """
    stored = _look_into(path, IMAGES)
    name = next((name for name in ("", "samples", "arr_0") if name in stored.arrays), None)
    if name is None:
        hint = ": statistics are for metrics.reference" * ({"mu", "sigma"} <= stored.arrays.keys())
        raise InputError(f"{path}: found arrays {_names(stored)}; need samples, or arr_0{hint}")
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
    """Read the labels beside so many images in a file, int64 (number,); -1 for each if there are none.

    Args:
        path: as for ``read_samples``; only an .npz file has labels, which guided-diffusion calls ``arr_1``.

    Raises:
        InputError: naming the file, if its labels are not one whole number for each image.
    """
    stored = _look_into(path, IMAGES) if path.is_file() else None
    arrays = stored.arrays if stored else {}
    name = "labels" if "samples" in arrays or "labels" in arrays else "arr_1"
    if stored is None or name not in arrays:
        return np.full(number, -1)
    shape, dtype = arrays[name]
    if dtype.kind not in "iu" or shape != (number,):
        raise InputError(f"{path}: {name} is {dtype} {shape}, need a whole number for each of {number} images")
    return _read_array(stored, name).astype(np.int64)


def read_statistics(path: Path, dimension: int) -> Reference:
    """Read the mean and covariance of the features of real images, as EDM and pytorch-fid store them: mu and sigma.

    Args:
        path: an .npz file.
        dimension: of the features that they are compared with.

    Raises:
        InputError: naming the file that is missing, damaged, or holds something else, and what that is.
    """
    if not path.is_file():
        raise InputError(f"metrics.reference={path} is not a file")
    stored = _look_into(path, "statistics, an .npz file")
    if not {"mu", "sigma"} <= stored.arrays.keys():
        raise InputError(f"{path}: found arrays {_names(stored)}; need mu and sigma, as EDM and pytorch-fid write them")
    for name, axes in (("mu", 1), ("sigma", 2)):
        shape, dtype = stored.arrays[name]
        if dtype.kind not in "iuf" or len(shape) != axes or len(set(shape)) != 1:
            raise InputError(f"{path}: {name} is {dtype} {shape}, need numbers (d,) of mu and (d, d) of sigma")
        if shape[0] != dimension:
            raise InputError(
                f"{path}: {name} is of {shape[0]} features, those of this run have {dimension} (64 of the digits, 2048 "
                "of Inception, which metrics.feature_weights=PATH chooses)"
            )
    mean, covariance = (_read_array(stored, name).astype(np.float64) for name in ("mu", "sigma"))
    for name, values in (("mu", mean), ("sigma", covariance)):
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} holds values that are not finite")
    largest = np.abs(covariance).max()
    if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-5 * largest):
        raise InputError(f"{path}: sigma is no covariance: it is not symmetric")
    variances = np.linalg.eigvalsh(covariance / largest) if largest else np.zeros(1)  # along the axes of its own
    if variances[0] < -1e-5 * variances[-1]:
        raise InputError(f"{path}: sigma is no covariance: it has a negative variance along some direction")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    protocol = {
        "images": "not said by the file",
        "statistics": str(path),
        "statistics_sha256": sha256,
        "features": "not said by the file, taken for those of the drawn images",
    }
    return Reference(mean, covariance, None, protocol)


def _look_into(path: Path, what: str) -> ArrayFile:
    """Find the arrays of a file that should be ``what``, none of which is read."""
    try:
        if not path.is_file():
            raise InputError(f"{path} is neither a file nor a folder")
        return ArrayFile(path)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path} cannot be read as {what}: {error}") from error


def _read_array(stored: ArrayFile, name: str) -> np.ndarray:
    try:
        return stored.read(name)
    except BROKEN as error:
        raise InputError(f"{stored.path} cannot be read: {error}") from error


def _names(stored: ArrayFile) -> str:
    """Name the arrays in a file, the first of them."""
    names = [name or "one without a name" for name in stored.arrays]
    return f"{', '.join(names[:8])}{', ...' * (len(names) > 8)}" if names else "none"


def compute_metrics(
    features: Tensor, logits: Tensor, real: Reference | None, chosen: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, dict[str, Any]]:
    """The metrics ``chosen``, {name: options}, of the features and logits of drawn images, (N, d) and (N, K).

    Args:
        real: the reference; None if only the Inception score is asked for.
        seed: of the subsets and the order of the images.

    Returns:
        For each a ``value``, an ``error`` where there is one, with what it is, and what it was computed with.
    """
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # heavy, where used

    n, known = len(features), cast(Reference, real)  # None only where nothing is compared
    results: dict[str, dict[str, Any]] = {}
    if "fid" in chosen:
        drawn = metric_fid.fid_features_to_statistics(features.double())
        statistics = {"mu": known.mean, "sigma": known.covariance}
        value = metric_fid.fid_statistics_to_metric(drawn, statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
        results["fid"] = {"value": value, "drawn": n}
        if n < PAPERS_USE:
            results["fid"]["note"] = f"of {n} images, not {PAPERS_USE}: larger than of more"
    if "kid" in chosen:
        real_features = cast(Tensor, known.features)
        size, subsets = min(chosen["kid"]["subset_size"], n, len(real_features)), chosen["kid"]["subsets"]
        out = metric_kid.kid_features_to_metric(
            features, real_features, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
        )
        spread = out[metric_kid.KEY_METRIC_KID_STD]
        results["kid"] = {
            "value": out[metric_kid.KEY_METRIC_KID_MEAN],
            "error": spread,
            "error_is": f"standard deviation over {subsets} subsets of {size}",
            "drawn": n,
        }
    if "inception_score" in chosen:
        splits = min(chosen["inception_score"]["splits"], n)
        out = metric_isc.isc_features_to_metric(logits, splits=splits, rng_seed=seed)
        results["inception_score"] = {
            "value": out[metric_isc.KEY_METRIC_ISC_MEAN],
            "error": out[metric_isc.KEY_METRIC_ISC_STD],
            "error_is": f"standard deviation over {splits} parts",
            "drawn": n,
        }
    if "precision_recall" in chosen:
        neighborhood, real_features = chosen["precision_recall"]["neighborhood"], cast(Tensor, known.features)
        out = metric_prc.prc_features_to_metric(
            features,
            real_features,
            prc_neighborhood=neighborhood,
            save_cpu_ram=True,
            prc_batch_size=5000,
            verbose=False,
        )
        for name, count in (("precision", n), ("recall", len(real_features))):
            share = out[name]
            results[name] = {
                "value": share,
                "error": float(np.sqrt(share * (1 - share) / count)),
                "error_is": f"binomial standard error of {count} images",
                "drawn": n,
                "real": len(real_features),
                "neighborhood": neighborhood,
            }
    return results

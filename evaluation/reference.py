"""Statistics of the real images that samples are compared with: computed and cached, or read from a file."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from datasets import ImageDataset
from evaluation.features import Features, to_pixels
from evaluation.read_samples import array_names, open_arrays, read_array
from models.io.safetensors import digest
from utils.errors import InputError

log = logging.getLogger(__name__)

KEPT = 50_000  # most real images whose features are stored, for KID, precision and recall
BATCH = 100  # images in a batch


@dataclass(frozen=True)
class Reference:
    """Statistics of the features of the real images.

    Attributes:
        mean: mean of the features of all images, float64 (d,).
        covariance: covariance of the features of all images, float64 (d, d).
        features: features of at most ``KEPT`` images, chosen at random with a fixed seed, float32 (n, d); None if only
            the mean and covariance are known.
        protocol: names of the images and features, and their hashes.
    """

    mean: np.ndarray
    covariance: np.ndarray
    features: Tensor | None
    protocol: dict[str, Any]


def reference_statistics(images: ImageDataset, dataset: str, features: Features, cache: Path) -> Reference:
    """Return the statistics of the training images, read from the folder ``cache`` or computed and written there.

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
    """Compute mean and covariance in float64, by sums about the mean of the first batch, a batch at a time."""
    n = len(images)
    kept = set(np.random.default_rng(0).permutation(n)[:KEPT].tolist())
    center, total, products = (torch.zeros(0, dtype=torch.float64) for _ in range(3))
    chosen = []
    for start in tqdm(range(0, n, BATCH), desc="real images", unit="batch", disable=None):
        batch, _ = features(to_pixels(images.data[start : start + BATCH], images.levels))
        chosen.append(batch[[i in kept for i in range(start, start + len(batch))]])
        batch = batch.double()
        if start == 0:
            center = batch.mean(0)
            total, products = torch.zeros_like(center), torch.zeros(len(center), len(center), dtype=torch.float64)
        batch = batch - center
        total += batch.sum(0)
        products += batch.T @ batch
    covariance = (products - torch.outer(total, total) / n) / (n - 1)
    return {"mean": center + total / n, "covariance": covariance, "features": torch.cat(chosen)}


def read_statistics(path: Path, dimension: int) -> Reference:
    """Read the mean and covariance of the features of real images, as EDM and pytorch-fid store them: mu and sigma.

    Args:
        path: path of an .npz file.
        dimension: number of features of the samples that are compared with them.

    Raises:
        InputError: naming the file that is missing, damaged, or has other contents, and the contents.
    """
    if not path.is_file():
        raise InputError(f"metrics.reference={path} is not a file")
    stored = open_arrays(path, "statistics, an .npz file")
    if not {"mu", "sigma"} <= stored.arrays.keys():
        raise InputError(
            f"{path}: found arrays {array_names(stored)}; need mu and sigma, as EDM and pytorch-fid write them"
        )
    for name, axes in (("mu", 1), ("sigma", 2)):
        shape, dtype = stored.arrays[name]
        if dtype.kind not in "iuf" or len(shape) != axes or len(set(shape)) != 1:
            raise InputError(f"{path}: {name} is {dtype} {shape}, need numbers (d,) of mu and (d, d) of sigma")
        if shape[0] != dimension:
            raise InputError(
                f"{path}: {name} is of {shape[0]} features, those of this run have {dimension} (64 of digits and "
                "patches, 2048 of Inception, which metrics.feature_weights=PATH chooses)"
            )
    mean, covariance = (read_array(stored, name).astype(np.float64) for name in ("mu", "sigma"))
    for name, values in (("mu", mean), ("sigma", covariance)):
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} holds values that are not finite")
    largest = np.abs(covariance).max()
    if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-5 * largest):
        raise InputError(f"{path}: sigma is no covariance: it is not symmetric")
    variances = np.linalg.eigvalsh(covariance / largest) if largest else np.zeros(1)  # along the principal axes
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

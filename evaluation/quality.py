"""How near drawn images are to real ones: FID, KID, Inception score, precision and recall, by torch-fidelity."""

import hashlib
import json
import logging
import os
import zlib
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

from datasets import Images
from datasets.prepare import UnreadableError, find_images, read_image
from errors import InputError
from evaluation.features import Features, to_pixels
from models.files import DAMAGE, digest

log = logging.getLogger(__name__)

KEPT = 50_000  # features of real images that are kept, for KID, precision and recall
PAPERS_USE = 50_000  # drawn images
BATCH = 100

METRICS = ("fid", "kid", "inception_score", "precision_recall")


@dataclass(frozen=True)
class Reference:
    """What is known of the real images.

    Attributes:
        mean, covariance: of the features of all, float64 (d,) and (d, d).
        features: of at most ``KEPT`` of them, chosen at random with a fixed seed, float32 (n, d).
        protocol: which images and features, and their hashes.
    """

    mean: np.ndarray
    covariance: np.ndarray
    features: Tensor
    protocol: dict[str, Any]


def reference(images: Images, dataset: str, features: Features, cache: Path) -> Reference:
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


def _hash(images: Images) -> str:
    digest = hashlib.sha256(repr((tuple(images.pixels.shape), images.levels)).encode())
    for part in images.pixels.split(4096):
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


def _statistics(images: Images, features: Features) -> dict[str, Tensor]:
    """Mean and covariance by sums about the mean of the first batch, in float64, a batch at a time."""
    n = len(images)
    kept = set(np.random.default_rng(0).permutation(n)[:KEPT].tolist())
    center, total, products = (torch.zeros(0, dtype=torch.float64) for _ in range(3))
    chosen = []
    for part in tqdm(range(0, n, BATCH), desc="real images", unit="batch", disable=None):
        own, _ = features(to_pixels(images.pixels[part : part + BATCH], images.levels))
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
        path: an .npz file with ``samples``, as run_vis.py writes it, or a folder of such files or of image files.

    Raises:
        InputError: naming the file that is missing, damaged, or holds other images.
    """
    if not path.exists():
        raise InputError(f"metrics.samples={path} does not exist")
    arrays = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    parts = []
    for file in arrays:
        try:
            with np.load(file, allow_pickle=False) as stored:
                parts.append(stored["samples"])
        except (*DAMAGE, zlib.error) as error:
            raise InputError(f"{file} cannot be read as images drawn by run_vis.py: {error}") from error
    if not arrays:
        for file in find_images(path):
            try:
                image = read_image(file, None, num_channels)
            except UnreadableError as error:
                raise InputError(f"{file} cannot be read: {error}") from error
            parts.append(image[None])
        arrays = find_images(path)
    if not parts:
        raise InputError(f"metrics.samples={path} has no .npz and no images")
    for part, file in zip(parts, arrays, strict=True):
        if part.dtype != np.uint8 or part.shape[1:] != (size, size, num_channels):
            raise InputError(
                f"{file} holds {part.dtype} {part.shape[1:]}, the run has uint8 {(size, size, num_channels)}"
            )
    return np.concatenate(parts)


def judge(
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
        size, subsets = min(chosen["kid"]["subset_size"], n, len(known.features)), chosen["kid"]["subsets"]
        out = metric_kid.kid_features_to_metric(
            features, known.features, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False
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
        neighborhood = chosen["precision_recall"]["neighborhood"]
        out = metric_prc.prc_features_to_metric(
            features,
            known.features,
            prc_neighborhood=neighborhood,
            save_cpu_ram=True,
            prc_batch_size=5000,
            verbose=False,
        )
        for name, count in (("precision", n), ("recall", len(known.features))):
            share = out[name]
            results[name] = {
                "value": share,
                "error": float(np.sqrt(share * (1 - share) / count)),
                "error_is": f"binomial standard error of {count} images",
                "drawn": n,
                "real": len(known.features),
                "neighborhood": neighborhood,
            }
    return results

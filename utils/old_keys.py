"""Conversion of configurations that earlier versions of this code wrote to the present keys and values."""

from collections.abc import Mapping
from typing import Any

# {old key: present key}
RENAMED = {
    "training.accumulate": "training.grad_accum_steps",
    "training.recompute_activations": "training.activation_checkpointing",
    "metrics.bpd.probes": "metrics.bpd.num_probes",
    "metrics.elbo.times": "metrics.elbo.num_times",
    "metrics.elbo.importance": "metrics.elbo.importance_sampling",
    "metrics.drawn": "metrics.num_images",
    "metrics.samples": "metrics.samples_path",
    "metrics.features": "metrics.feature_weights",
}
# {present key: value with which this version does what a version without the key did}
ADDED = {
    "sde.name": "reflected_ve",
    "model.parametrization": "output",
    "sampling.percentile": 0.995,
    "sampling.face_width": 0.0,
    "sampling.nfe": None,
    "sampling.sigmas": None,
    "sampling.eta": 0,
    "metrics.bpd.face_width": 0.0,
}
# {added key: (key that its section must have too, value)}: scripts have sections of the same name with other options
ADDED_BESIDE = {
    "eval.weights": ("ckpt", "ema"),
    "eval.particles": ("rounds", 32),
    "data.augment": ("image_size", 0),
    "data.random_crop": ("image_size", 0),
}
# {added section: (key beside it, the values of the section that are not null)}, as above
ADDED_SECTIONS = {"guidance": ("w", {"ckpt": -1, "eta": 1.0, "momentum": 0.0})}
# {key: (added key, old value, present value)} for configurations without the added key
CHANGED = {"sampling.boundary": ("sampling.percentile", "reflect", None)}
# The same for sampling.method=pc, which reads none of these: its samples do not change, and drawing them continues.
UNREAD_BY_PC = {"face_width": (0.0, "auto"), "rtol": (1e-6, None), "atol": (1e-6, None)}


def update_old_keys(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a configuration of an earlier version to plain dictionaries with the present keys and values.

    A configuration of this version is returned unchanged. If a configuration has an old key and the present one, both
    stay, and the check of options refuses them.
    """
    updated = {key: _copy(part) for key, part in cfg.items()}
    for old, new in RENAMED.items():
        section, name = _find(updated, old)
        present = new.rpartition(".")[2]
        if name in section and present not in section:
            section[present] = section.pop(name)
    for key, (added, before, now) in CHANGED.items():
        section, name = _find(updated, key)
        if name in section and section[name] == before and added.rpartition(".")[2] not in _find(updated, added)[0]:
            section[name] = now
    sampling = _find(updated, "sampling.face_width")[0]
    new_key = "face_width" not in sampling
    for key, default in ADDED.items():
        section, name = _find(updated, key)
        if section:
            section.setdefault(name, default)
    for key, (other, value) in ADDED_BESIDE.items():
        section, name = _find(updated, key)
        if other in section:
            section.setdefault(name, value)
    for name, (beside, values) in ADDED_SECTIONS.items():
        if beside in updated:
            updated.setdefault(name, dict(values))
    if sampling.get("method") == "pc" and new_key:
        for name, (unread, current) in UNREAD_BY_PC.items():
            if sampling.get(name) == unread:
                sampling[name] = current
    return updated


def present_name(key: str) -> str | None:
    """Return the present name of an old key; None for a key that is not old."""
    return RENAMED.get(key)


def _copy(part: Any) -> Any:
    return {key: _copy(inner) for key, inner in part.items()} if isinstance(part, Mapping) else part


def _find(cfg: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return the section that ``key`` belongs to, an empty one if there is none, and the last part of ``key``."""
    *sections, name = key.split(".")
    section: Any = cfg
    for part in sections:
        section = section.get(part) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}, name

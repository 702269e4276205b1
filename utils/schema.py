"""Every option of the three scripts and what it may be: one table, checked as a whole before any work.

The bounds on networks and images also hold for the configuration of a loaded run, which is untrusted: they keep what
it can ask for within what a machine has.
"""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from utils.checks import ListOf, Number, OneOf, Schema, anything, check_all, flag, optional_text, text
from utils.errors import InputError

COUNT = Number(1, 10**9, integer=True)
SEED = Number(0, 2**63 - 1, integer=True)
RATE = Number(0, 1)
TIMEOUT = Number(1, 10**7)
LEVEL = Number(0, 10**6, above=True)
IMAGES = Number(1, 10**6, integer=True)
PRECISION = OneOf(("fp32", "bf16", "fp16"))
DEVICE = OneOf(("auto", "cpu", "cuda"))

LARGEST_IMAGE = 3 * 512 * 512  # numbers
WIDTH = Number(1, 8192, integer=True)
BLOCKS = Number(1, 256, integer=True)
MULTIPLES = ListOf(Number(1, 64, integer=True), shortest=1)
SIZES = ListOf(Number(1, 1024, integer=True))

NETWORKS: dict[str, Schema] = {
    "ddpmpp": {
        "nf": WIDTH,
        "ch_mult": MULTIPLES,
        "num_res_blocks": BLOCKS,
        "attn_resolutions": SIZES,
        "dropout": RATE,
        "skip_rescale": flag,
        "fourier_scale": Number(0, 10**6, above=True),
        "init_scale": Number(0, 10**6),
    },
    "vdm": {
        "channels": Number(4, 8192, integer=True),
        "num_blocks": BLOCKS,
        "attention": flag,
        "image_fourier": flag,
        "image_fourier_start": Number(0, 64, integer=True),
        "image_fourier_end": Number(0, 64, integer=True),
        "dropout": RATE,
    },
    "adm": {
        "model_channels": WIDTH,
        "channel_mult": MULTIPLES,
        "channel_mult_emb": Number(1, 64, integer=True),
        "num_blocks": BLOCKS,
        "attn_resolutions": SIZES,
        "dropout": RATE,
    },
}
OF_ALL_NETWORKS: Schema = {
    "name": text,
    "parametrization": text,
    "scale_by_sigma": flag,
    "sigma_data": LEVEL,
    "ema_rate": RATE,
}

DATA: Schema = {
    "dataset": text,
    "image_size": Number(1, 1024, integer=True),
    "num_channels": Number(1, 64, integer=True),
    "classes": flag,
    "num_classes": Number(0, 10**6, integer=True),
    "random_flip": flag,
    "dequantize": flag,
}


SHAPE = ListOf(Number(1, 2**20, integer=True), shortest=1, longest=4)  # in place of image_size and num_channels


def colour(key: str, value: Any) -> None:
    """A ``Check``: an opaque colour, by a name of CSS or as #rrggbb."""
    from PIL import ImageColor  # a moment, of folders only

    try:
        known = isinstance(value, str) and len(ImageColor.getrgb(value)) == 3
    except ValueError:
        known = False
    if not known:
        raise InputError(f"{key}={value}: need a colour such as white, grey or '#ff8000'")


def class_names(key: str, value: Any) -> None:
    """A ``Check``: a list of different names, or null."""
    if value is not None:
        ListOf(text, shortest=1, longest=10**6)(key, value)
        if len(set(value)) < len(value):
            raise InputError(f"{key}={value}: need different names")


# Of data=folder; a run from before one of these has its default.
FOLDER: Schema = {"background": colour, "white": Number(0, above=True, optional=True), "class_names": class_names}

SDE: Schema = {
    "name": anything,  # sde.create_process
    "sigma_min": LEVEL,
    "sigma_max": LEVEL,
    "num_scales": Number(1, 10**6, integer=True),
}

# Which sampler takes which of these, and how large they may be, is checked by the samplers themselves.
SAMPLING: Schema = dict.fromkeys(
    (
        "method",
        "steps",
        "denoiser",
        "trajectory",
        "predictor",
        "corrector",
        "n_steps_each",
        "snr",
        "boundary",
        "percentile",
        "rtol",
        "atol",
        "moll",
        "side_eps",
    ),
    anything,
)

LOGGERS: dict[str, Schema] = {
    "tensorboard": {},
    "wandb": {"project": text, "entity": optional_text, "mode": OneOf(("online", "offline"))},
    "none": {},
}

TRAIN: Schema = {
    "root": text,
    "ngpus": Number(1, 4096, integer=True),
    "device": DEVICE,
    "precision": PRECISION,
    "compile": flag,
    "seed": SEED,
    "dataroot": text,
    "debug": flag,
    "data": anything,
    "model": anything,
    "logger": anything,
    "sde": SDE,
    "sampling": SAMPLING,
    "training": {
        "batch_size": IMAGES,
        "grad_accum_steps": COUNT,
        "activation_checkpointing": flag,
        "n_iters": Number(0, 10**12, integer=True),
        "snapshot_freq": COUNT,
        "snapshot_freq_for_preemption": COUNT,
        "snapshot_sampling": flag,
        "log_freq": COUNT,
        "eval_freq": COUNT,
        "likelihood_weighting": flag,
        "reduce_mean": flag,
        "drop_label": RATE,
        "noise_levels": anything,  # losses.noise_levels.create_noise_levels
        "log_sigma_mean": Number(-100, 100),
        "log_sigma_std": Number(0, 100, above=True),
        "startup_timeout": TIMEOUT,
        "step_timeout": TIMEOUT,
        "allow_data_change": flag,
    },
    "eval": {"batch_size": IMAGES},
    "optim": {
        "optimizer": OneOf(("Adam", "AdamW")),
        "lr": Number(0),
        "beta1": Number(0, 1, below=True),
        "beta2": Number(0, 1, below=True),
        "eps": Number(0),
        "weight_decay": Number(0),
        "warmup": Number(0),
        "grad_clip": Number(),
    },
}

# What run_vis.py and run_eval.py share: which network, and how to draw from it.
_DRAWING: Schema = {
    "root": text,
    "load_dir": text,
    "label": anything,
    "w": Number(),
    "seed": SEED,
    "ngpus": Number(1, 4096, integer=True),
    "denoiser_path": optional_text,
    "device": DEVICE,
    "precision": PRECISION,
    "compile": flag,
    "debug": flag,
    "sampling": SAMPLING,
}

VIS: Schema = {
    **_DRAWING,
    "eval": {"ckpt": Number(-1, 10**12, integer=True), "batch_size": IMAGES, "rounds": COUNT, "save_images": flag},
}

OF_EACH_REAL_IMAGE = ("kid", "precision_recall")  # need its features, and not only their mean and covariance
METRICS: dict[str, Schema] = {
    "bpd": {
        "divergence": OneOf(("hutchinson", "exact")),
        "num_probes": Number(1, 10**4, integer=True),
        "rtol": Number(0, above=True),
        "atol": Number(0, above=True),
    },
    "elbo": {"num_times": COUNT, "importance_sampling": flag},
    "fid": {},
    "kid": {"subsets": COUNT, "subset_size": Number(2, 10**6, integer=True)},
    "inception_score": {"splits": COUNT},
    "precision_recall": {"neighborhood": COUNT},
}

EVAL: Schema = {
    **_DRAWING,
    "dataroot": text,
    "data": {"root": optional_text},
    "eval": {
        "ckpt": Number(-1, 10**12, integer=True),
        "batch_size": IMAGES,
        "split": OneOf(("test", "train")),
        "images": Number(1, 10**9, integer=True, optional=True),
    },
}
CHOSEN_METRICS: Schema = {
    "num_images": Number(2, 10**8, integer=True),
    "samples_path": optional_text,
    "feature_weights": optional_text,
    "reference": optional_text,
}


def keys(schema: Schema, prefix: str = "") -> list[str]:
    """All keys of a schema, "section.name"."""
    found = []
    for name, check in schema.items():
        found += [f"{prefix}{name}", *(keys(check, f"{prefix}{name}.") if isinstance(check, Mapping) else [])]
    return found


def train_keys() -> list[str]:
    """All keys of run_train.py."""
    networks = {name: check for schema in (OF_ALL_NETWORKS, *NETWORKS.values()) for name, check in schema.items()}
    groups = {"model": networks, "data": {**DATA, "root": text, **FOLDER}, "logger": LOGGERS["wandb"]}
    return keys({**TRAIN, **groups, "resume": text})


def vis_keys() -> list[str]:
    """All keys of run_vis.py."""
    return keys(VIS)


def eval_keys() -> list[str]:
    """All keys of run_eval.py."""
    return keys({**EVAL, "metrics": {**CHOSEN_METRICS, **METRICS}})


def check_train(cfg: DictConfig, processes: int) -> None:
    """Check the configuration of run_train.py.

    Args:
        cfg: resolved.
        processes: that share a batch.

    Raises:
        InputError: naming the key at fault.
    """
    check_all(cfg, {**TRAIN, **({"resume": optional_text} if "resume" in cfg else {})})
    check_what_is_modelled(cfg)
    OneOf(tuple(LOGGERS))("logger.name", cfg.logger.get("name"))
    check_all(cfg.logger, {"name": text, **LOGGERS[cfg.logger.name]}, "logger.")
    if cfg.optim.grad_clip == 0:
        raise InputError("optim.grad_clip=0 leaves no gradient: need a positive norm, or a negative one for no limit")
    if cfg.training.batch_size < processes * cfg.training.grad_accum_steps:
        raise InputError(
            f"training.batch_size={cfg.training.batch_size}: less than an image for each of {processes} processes x "
            f"training.grad_accum_steps={cfg.training.grad_accum_steps}"
        )


def check_vis(cfg: DictConfig) -> None:
    """Raise InputError, naming the key at fault, unless ``cfg`` is a configuration of run_vis.py."""
    check_all(cfg, VIS)


def check_eval(cfg: DictConfig) -> None:
    """Raise InputError, naming the key at fault, unless ``cfg`` is a configuration of run_eval.py."""
    chosen = {name: schema for name, schema in METRICS.items() if name in cfg.metrics}
    check_all(cfg, {**EVAL, "metrics": {**CHOSEN_METRICS, **chosen}})
    if not chosen:
        raise InputError(f"metrics=[]: choose some of {', '.join(METRICS)}")
    if cfg.metrics.reference is not None:
        key, more = (
            f"metrics.reference={cfg.metrics.reference}",
            [name for name in OF_EACH_REAL_IMAGE if name in chosen],
        )
        if more:
            raise InputError(
                f"{key} is a mean and covariance, from which {' and '.join(more)} cannot be computed: choose "
                "metrics=[fid], or leave metrics.reference out to compare with the training images"
            )
        if "fid" not in chosen:
            raise InputError(f"{key} is for fid, which is not among the chosen metrics: {', '.join(chosen)}")
    if "precision_recall" in chosen and cfg.metrics.num_images <= cfg.metrics.precision_recall.neighborhood:
        raise InputError(
            f"metrics.num_images={cfg.metrics.num_images}: need more images than metrics.precision_recall.neighborhood="
            f"{cfg.metrics.precision_recall.neighborhood}"
        )


def check_what_is_modelled(cfg: Mapping[str, Any]) -> None:
    """Check ``model``, ``data`` and ``sde`` of a new run.

    Raises:
        InputError: naming the key at fault.
    """
    network = _model_schema(cfg["model"])
    required = ("name", "scale_by_sigma", "ema_rate")  # the others have defaults
    missing = [key for key in network if key not in cfg["model"] and key not in required]
    check_all(cfg["model"], {key: check for key, check in network.items() if key not in missing}, "model.")
    data = DATA
    if "shape" in cfg["data"]:
        replaced = ("image_size", "num_channels")
        data = {"shape": SHAPE, **{key: check for key, check in DATA.items() if key not in replaced}}
    if cfg["data"].get("dataset") == "folder":
        data = {**DATA, "root": optional_text, **{key: check for key, check in FOLDER.items() if key in cfg["data"]}}
    for key in cfg["data"]:
        if key in ("root", *FOLDER) and key not in data:
            raise InputError(f"data.{key} is an option of data=folder, and this is data={cfg['data'].get('dataset')}")
    check_all(cfg["data"], data, "data.")
    check_all(cfg["sde"], SDE, "sde.")
    _check_sizes(cfg)


def check_loaded(cfg: Mapping[str, Any]) -> None:
    """Check ``model``, ``data`` and ``sde`` of a loaded run, which may lack keys or have others.

    Raises:
        InputError: naming the key at fault.
    """
    network = _model_schema(cfg["model"])
    for section, schema in (("model", network), ("data", {**DATA, "shape": SHAPE, **FOLDER}), ("sde", SDE)):
        for key in schema.keys() & cfg[section].keys():
            check = schema[key]
            assert not isinstance(check, Mapping), "these have no sections"
            check(f"{section}.{key}", cfg[section][key])
    _check_sizes(cfg)


def _model_schema(model: Mapping[str, Any]) -> Schema:
    """Options of ``model``; those of a network that is not in ``NETWORKS`` are checked where it is created."""
    text("model.name", model.get("name"))
    return {**NETWORKS.get(model["name"], dict.fromkeys(model, anything)), **OF_ALL_NETWORKS}


def _check_sizes(cfg: Mapping[str, Any]) -> None:
    data, sde = cfg["data"], cfg["sde"]
    if data.get("shape") is None:
        if data["num_channels"] * data["image_size"] ** 2 > LARGEST_IMAGE:
            raise InputError(f"data.image_size={data['image_size']}: images of more than {LARGEST_IMAGE} numbers")
    elif math.prod(data["shape"]) > LARGEST_IMAGE:
        raise InputError(f"data.shape={data['shape']}: items of more than {LARGEST_IMAGE} numbers")
    if sde["sigma_min"] >= sde["sigma_max"]:
        raise InputError(
            f"sde.sigma_min={sde['sigma_min']} and sde.sigma_max={sde['sigma_max']}: need sigma_min < sigma_max"
        )

"""The layout of the published code: its configuration keys, and the names of the tensors of its checkpoints.

A published model directory differs from a run of this code in the values and unused keys of its configuration, in the
names of the tensors, and in the attention layers of DDPM++, which it stores transposed. The order of the parameters is
the same.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.adm import ADM
from models.ddpmpp import DDPMpp
from models.vdm import VDM
from utils.errors import InputError

PUBLISHED_NAMES = {"cifar10": "CIFAR10", "imagenet32": "ImageNet32", "imagenet64c": "ImageNet64C"}
# Options of the published DDPM++ with the only value that this code supports; other values are other networks.
VARIANTS = {
    "nonlinearity": "swish",
    "conditional": True,
    "fir": False,
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "residual",
    "embedding_type": "fourier",
}
# Keys that the published code never read, or not with these variants, with their values in its configuration files.
UNREAD: dict[str, dict[str, Any]] = {
    "model": {
        "normalization": "GroupNorm",
        "resamp_with_conv": True,
        "fir_kernel": [1, 3, 3, 1],
        "progressive_combine": "sum",
        "attention_type": "ddpm",
        "conv_size": 3,
    },
    "sde": {"name": "vesde"},
    "sampling": {"noise_removal": True, "probability_flow": False},
}


# Keys that published configurations and those of earlier versions lack, with the values that these imply.
PARAMETRIZATION = {"parametrization": "output", "sigma_data": 0.5}


def is_published(cfg: Mapping[str, Any]) -> bool:
    """Return whether a configuration is of the published code, by its process, its network or a missing seed."""
    process, network = cfg["sde"].get("name"), cfg["model"]["name"]
    return str(process).lower() == UNREAD["sde"]["name"] or network == "ncsnpp" or "seed" not in cfg


def from_published(cfg: dict[str, Any]) -> dict[str, Any]:
    """Translate a published configuration to the keys of this code, and add the keys that older ones lack.

    Raises:
        InputError: naming the key, for a variant of the network that this code does not support.
    """
    published = is_published(cfg)
    cfg = {section: dict(part) if isinstance(part, dict) else part for section, part in cfg.items()}
    model, data = cfg["model"], cfg["data"]
    for section, keys in UNREAD.items():
        for key in keys:
            if isinstance(cfg.get(section), dict) and (section != "sde" or published):
                cfg[section].pop(key, None)
    if model["name"] == "ncsnpp":
        model["name"] = "ddpmpp"
        for key, supported in VARIANTS.items():
            value = model.pop(key, supported)
            if (value.lower() if isinstance(value, str) else value) != supported:
                raise InputError(f"model.{key}={value} is a variant that this code does not have, only {supported}")
    cfg["sde"].setdefault("name", "reflected_ve")  # the published name means it, and runs without one are of it
    for key, value in PARAMETRIZATION.items():
        model.setdefault(key, value)
    data.setdefault("num_classes", 0)
    data.setdefault("classes", False)
    data.setdefault("dequantize", False)
    if published:
        names = {theirs: ours for ours, theirs in PUBLISHED_NAMES.items()}
        data["dataset"] = names.get(data.get("dataset"), data.get("dataset"))
        if model["name"] == "adm":
            data["classes"] = bool(data["num_classes"])  # the published ADM only reads the number
    return cfg


def to_published(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a configuration to the keys of the published code; the inverse of ``from_published``.

    Raises:
        InputError: for a process or a network that the published code does not have.
    """
    if cfg["sde"]["name"] != "reflected_ve":
        raise InputError(
            f"sde.name={cfg['sde']['name']}: the published code has only the reflected process: use --format "
            "safetensors"
        )
    if cfg["data"].get("augment"):
        raise InputError(
            f"data.augment={cfg['data']['augment']}: the published networks cannot be told of it: use --format "
            "safetensors"
        )
    cfg = {section: dict(part) if isinstance(part, Mapping) else part for section, part in cfg.items()}
    for section, keys in UNREAD.items():
        if section != "model" or cfg["model"]["name"] == "ddpmpp":
            cfg[section] = {**cfg.get(section, {}), **keys}
    if cfg["model"]["name"] == "ddpmpp":
        cfg["model"] |= {**VARIANTS, "name": "ncsnpp"}
    for key in PARAMETRIZATION:
        cfg["model"].pop(key, None)
    if cfg["model"]["name"] == "adm" and not cfg["data"]["classes"]:
        cfg["data"]["num_classes"] = 0  # the published ADM only reads the number
    cfg["data"]["dataset"] = PUBLISHED_NAMES.get(cfg["data"]["dataset"], cfg["data"]["dataset"])
    cfg["data"].pop("dequantize", None)  # an option of training that the published code does not have
    return cfg


@dataclass(frozen=True)
class StoredTensor:
    """One entry of the ``state_dict`` of a checkpoint.

    Attributes:
        name: name of the entry in the checkpoint.
        ours: name of the parameter in this code; None for a constant, which follows from the configuration.
        transposed: whether the matrix is stored with its axes exchanged.
        constant: value of a constant; None for a parameter.
    """

    name: str
    ours: str | None = None
    transposed: bool = False
    constant: Tensor | None = None

    def convert(self, tensor: Tensor) -> Tensor:
        """Convert a tensor from the stored layout to that of this code, or back."""
        return tensor.T if self.transposed else tensor


def published_tensors(net: nn.Module, sde: Mapping[str, Any]) -> list[StoredTensor]:
    """List the entries of the published ``state_dict`` of ``net``, in its order, also the order of the EMA tensors.

    The list is empty for a network that the published code does not have.

    Args:
        net: network; DDPMpp, VDM and ADM are published.
        sde: section with ``sigma_min``, ``sigma_max`` and ``num_scales``, from which a constant of DDPM++ follows.
    """
    walk = {DDPMpp: _ddpmpp, VDM: _vdm, ADM: _adm}.get(type(net))
    if walk is None:
        return []
    with torch.device("cpu"):  # the constants need values even if the network is on the meta device
        return list(walk(net, sde))


def _unit(
    net: nn.Module, ours: str, theirs: str, layers: Mapping[str, str] = MappingProxyType({})
) -> Iterator[StoredTensor]:
    """List the parameters of submodule ``ours``, published as ``theirs``; ``layers`` maps names within the two."""
    for name, _ in net.get_submodule(ours).named_parameters():
        layer, _, kind = name.rpartition(".")
        layer, kind = layers.get(layer, layer), layers.get(kind, kind)
        linear_map = layer.startswith("NIN")  # kept as W[in, out] and b
        if linear_map:
            kind = {"weight": "W", "bias": "b"}[kind]
        path = ".".join(part for part in (theirs, layer, kind) if part)
        yield StoredTensor(path, f"{ours}.{name}", transposed=linear_map and kind == "W")


DDPMPP_LAYERS = MappingProxyType(
    {
        **{"frequencies": "W", "norm1": "GroupNorm_0", "conv1": "Conv_0", "embed": "Dense_0", "norm2": "GroupNorm_1"},
        **{"conv2": "Conv_1", "shortcut": "Conv_2"},
        **{"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"},
    }
)


def _ddpmpp(net: DDPMpp, sde: Mapping[str, Any]) -> Iterator[StoredTensor]:
    """List all_modules.K, where K counts blocks and the layers between them in the order of computation."""
    if not 1 <= sde["num_scales"] <= 1_000_000:
        raise InputError(f"sde.num_scales={sde['num_scales']}: need an integer, 1 to 1000000")
    log_min, log_max = math.log(sde["sigma_min"]), math.log(sde["sigma_max"])
    levels = torch.linspace(log_max, log_min, sde["num_scales"], dtype=torch.float64).exp()
    yield StoredTensor("sigmas", constant=levels.float())

    units = ["fourier", "embed1", "embed2", "conv_in"]
    for i, level in enumerate(net.down_levels):
        units += [f"down_levels.{i}.blocks.{j}.{part}" for j in range(len(level.blocks)) for part in (0, 1)]
        units += [f"down_levels.{i}.down", f"down_levels.{i}.pyramid"] * (level.down is not None)
    units += ["mid_block1", "mid_attention", "mid_block2"]
    for i, level in enumerate(net.up_levels):
        units += [f"up_levels.{i}.blocks.{j}" for j in range(len(level.blocks))] + [f"up_levels.{i}.attention"]
        units += [f"up_levels.{i}.up"] * (level.up is not None)
    units += ["norm_out", "conv_out"]

    present = [unit for unit in units if not isinstance(net.get_submodule(unit), nn.Identity)]
    for k, unit in enumerate(present):
        inner = ".Conv_0" if unit.endswith("pyramid") else ""
        yield from _unit(net, unit, f"all_modules.{k}{inner}", DDPMPP_LAYERS)


VDM_LAYERS = MappingProxyType({"shortcut": "skip", "embed": "cond_map", "out": "proj_out"})


def _vdm(net: VDM, _: object) -> Iterator[StoredTensor]:
    """List the tensors of VDM; blocks and attentions share one count in the encoder and one in the decoder."""

    def path(ours: str, theirs: str) -> Iterator[StoredTensor]:
        pairs = [f"{ours}.{i}.{part}" for i in range(len(net.get_submodule(ours))) for part in (0, 1)]
        present = [unit for unit in pairs if not isinstance(net.get_submodule(unit), nn.Identity)]
        for k, unit in enumerate(present):
            yield from _unit(net, unit, f"{theirs}.{k}", VDM_LAYERS)

    yield from _unit(net, "embed1", "cond_map.0")
    yield from _unit(net, "embed2", "cond_map.2")
    if net.image_fourier:
        yield StoredTensor("image_fourier.freqs", constant=2 ** torch.tensor(net.fourier_powers))
    yield from _unit(net, "conv_in", "conv_in")
    yield from path("encoder", "enc")
    yield from _unit(net, "mid_block1", "mid1", VDM_LAYERS)
    yield from _unit(net, "mid_attention", "midattn", VDM_LAYERS)
    yield from _unit(net, "mid_block2", "mid2", VDM_LAYERS)
    yield from path("decoder", "dec")
    yield from _unit(net, "norm_out", "out.0")
    yield from _unit(net, "conv_out", "out.2")


ADM_LAYERS = MappingProxyType(
    {
        **{"norm1": "norm0", "conv1": "conv0", "norm2": "norm1", "conv2": "conv1", "shortcut": "skip"},
        **{"attention.norm": "norm2", "attention.qkv": "qkv", "attention.out": "proj"},
    }
)


def _adm(net: ADM, _: object) -> Iterator[StoredTensor]:
    """List the tensors of ADM, whose blocks are named by their resolution and their position in the level."""

    def resampling(ours: str, theirs: str) -> Iterator[StoredTensor]:
        """List the tensors of a block that resamples; two of its layers store the filter of four equal weights."""
        for tensor in _unit(net, ours, theirs, ADM_LAYERS):
            yield tensor
            for last, layer in (("conv0.bias", "conv0"), ("conv1.bias", "skip")):
                if tensor.name.endswith(last):
                    yield StoredTensor(f"{theirs}.{layer}.resample_filter", constant=torch.full((1, 1, 2, 2), 0.25))

    yield from _unit(net, "embed1", "model.map_layer0")
    yield from _unit(net, "embed2", "model.map_layer1")
    if net.num_classes:
        yield from _unit(net, "embed_label", "model.map_label")
    for i, level in enumerate(net.encoder):
        ours, theirs = f"encoder.{i}", f"model.enc.{level.size}x{level.size}"
        if i == 0:
            yield from _unit(net, "conv_in", f"{theirs}_conv")
        else:
            yield from resampling(f"{ours}.enter.0", f"{theirs}_down")
        for j in range(len(level.blocks)):
            yield from _unit(net, f"{ours}.blocks.{j}", f"{theirs}_block{j}", ADM_LAYERS)
    for i, level in enumerate(net.decoder):
        ours, theirs = f"decoder.{i}", f"model.dec.{level.size}x{level.size}"
        if i == 0:
            yield from _unit(net, f"{ours}.enter.0", f"{theirs}_in0", ADM_LAYERS)
            yield from _unit(net, f"{ours}.enter.1", f"{theirs}_in1", ADM_LAYERS)
        else:
            yield from resampling(f"{ours}.enter.0", f"{theirs}_up")
        for j in range(len(level.blocks)):
            yield from _unit(net, f"{ours}.blocks.{j}", f"{theirs}_block{j}", ADM_LAYERS)
    yield from _unit(net, "norm_out", "model.out_norm")
    yield from _unit(net, "conv_out", "model.out_conv")

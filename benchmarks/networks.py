"""Networks for benchmarks: the published architectures, with fewer channels and blocks on a CPU."""

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from cli.entry_point import ROOT, set_up
from models import ScoreModel, create_model

NARROW = {
    "ddpmpp": ["model.nf=32", "model.num_res_blocks=2"],
    "vdm": ["model.channels=32", "model.num_blocks=6"],
    "adm": ["model.model_channels=32", "model.num_blocks=1"],
}


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """Compose the configuration of run_NAME.py with ``overrides``."""
    set_up()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def config(kind: str, *overrides: str) -> DictConfig:
    """Compose a configuration for random 32x32 colour images: on a GPU as published, on a CPU with a narrow network."""
    narrow = [] if torch.cuda.is_available() else NARROW[kind]
    return composed("data=fake", f"model={kind}", *narrow, *overrides)


def network(kind: str) -> ScoreModel:
    """Build the network of ``config(kind)`` with fixed random weights."""
    cfg = config(kind)
    torch.manual_seed(0)
    return create_model(cfg.model, cfg.data, cfg.sde)

"""Networks to measure with: the published kinds, narrowed so that a CPU does a step in a moment."""

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from cli.entry_point import ROOT, set_up
from models import ScoreNetwork, create_model

NARROW = {
    "ddpmpp": ["model.nf=32", "model.num_res_blocks=2"],
    "vdm": ["model.channels=32", "model.num_blocks=6"],
    "adm": ["model.model_channels=32", "model.num_blocks=1"],
}


def composed(*overrides: str) -> DictConfig:
    """The configuration of run_train.py with ``overrides``."""
    set_up()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def config(kind: str, *overrides: str) -> DictConfig:
    """With a network for random 32x32 images in colour: on a GPU as published, on a CPU narrowed."""
    narrow = [] if torch.cuda.is_available() else NARROW[kind]
    return composed("data=fake", f"model={kind}", *narrow, *overrides)


def network(kind: str) -> ScoreNetwork:
    """The network of ``config(kind)``."""
    cfg = config(kind)
    torch.manual_seed(0)
    return create_model(cfg.model, cfg.data, cfg.sde)

"""Fixtures: small configurations, and the entry scripts run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

import doors  # noqa: F401  (registers the resolver that the configurations use)

ROOT = Path(__file__).resolve().parent.parent

# A network of a few thousand parameters on 8x8 digits, two steps, three sampler steps.
TINY = [
    "data=digits",
    "model=adm",
    "model.model_channels=8",
    "model.channel_mult=[1]",
    "model.num_blocks=1",
    "model.attn_resolutions=[]",
    "sampling.steps=3",
    "training.n_iters=2",
    "training.batch_size=8",
    "training.log_freq=1",
    "training.eval_freq=2",
    "eval.batch_size=20",
    "device=cpu",
]


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The configuration that a command line gives, without Hydra's own part."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(name, overrides=list(overrides))
    OmegaConf.resolve(cfg)
    return cfg


def tiny_config(*overrides: str) -> DictConfig:
    """The configuration of a run of ``TINY`` with ``overrides``."""
    cfg = composed(*TINY, *overrides)
    with open_dict(cfg):
        del cfg.resume
    return cfg


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run an entry script in ``tmp_path``: script("run_train.py", *overrides); the time limit is for hangs only."""

    def run(name: str, *args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        command = [sys.executable, str(ROOT / name), *args]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout)

    return run

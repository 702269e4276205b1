"""Training of a network on rows in memory: a run of run_train.py with the recipe ``experiment=array``."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from datasets.registry import complete_data
from models.io.run_files import best_of, read_records
from training.loop import train
from training.options import check_train
from training.run_dir import write_config
from utils.devices import choose_device
from utils.distributed import Distributed

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
_COMPOSING = threading.Lock()
CHECKPOINTS = 10  # of a run, among which the held-out loss chooses


def compose_config(options: Mapping[str, Any]) -> DictConfig:
    """Compose the configuration of ``run_train.py experiment=array`` with other values for some keys.

    Args:
        options: values by key, such as "data.low".
    """
    overrides = ["experiment=array", "logger=none", f"sde={options.get('sde.name', 'reflected_ve')}"]
    with _COMPOSING:  # Hydra has one state: that of a script around this call is put back
        around, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
        try:
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                cfg = compose("train", overrides)
        finally:
            GlobalHydra.instance().hydra = around
    OmegaConf.resolve(cfg)
    with open_dict(cfg):
        del cfg.resume
        for key, value in options.items():
            OmegaConf.update(cfg, key, value, merge=False)
    return cfg


def train_run(
    rows: np.ndarray, held_out: np.ndarray, options: Mapping[str, Any], folder: Path, progress: bool
) -> tuple[Path, int]:
    """Train a network, and return the directory of its run and the number of its best checkpoint.

    The best checkpoint has the lowest loss on the held-out rows, of ten over the run.

    Args:
        rows: rows to train on, float (N, D).
        held_out: rows that choose the checkpoint, float (M, D).
        options: values for keys of the configuration.
        folder: empty directory for the rows and the run.
        progress: whether to show a progress bar.

    Raises:
        InputError: for options or rows that cannot be used.
        TrainingError: if the loss is not finite.
    """
    files = folder / "rows.npy", folder / "held_out.npy"
    for path, part in zip(files, (rows, held_out), strict=True):
        np.save(path, part)
    cfg = compose_config({**options, "data.root": str(files[0]), "data.held_out": str(files[1])})
    complete_data(cfg.data)
    every = max(1, cfg.training.n_iters // CHECKPOINTS)
    cfg.training.snapshot_freq = cfg.training.eval_freq = every
    cfg.training.snapshot_freq_for_preemption = cfg.training.n_iters
    cfg.training.snapshot_sampling = False
    cfg.eval.batch_size = len(held_out)
    check_train(cfg, 1)
    run = folder / "run"
    run.mkdir()
    with torch.random.fork_rng():  # the random numbers of the caller are not ours
        train(cfg, run, Distributed(choose_device(cfg.device)), progress=progress)
    cfg.data.root, cfg.data.held_out = (path.name for path in files)  # which the folder takes with it
    write_config(run, cfg)
    best = best_of(read_records(run))
    assert best is not None, "a run whose loss is not finite ends with an error"
    return run, best

"""Directories that diffusers reads: network, scheduler and pipeline, with the code of the latter two."""

import ast
import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from datasets.shape import is_image
from models.io.model_card import model_card
from sde import create_process
from utils.errors import InputError
from utils.options import plain

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "models/diffusers_pipeline"
COPIED = re.compile(r"^from (sde\.\w+) import .*\n", re.MULTILINE)


def check_diffusers(cfg: DictConfig, run_dir: Path) -> None:
    """Raise InputError, naming the key at fault, for a run that has no pipeline of diffusers, or without diffusers."""
    if find_spec("diffusers") is None:
        raise InputError("--format diffusers needs the package diffusers: pip install diffusers")
    if not is_image(cfg.data):
        raise InputError(f"{run_dir}: data.shape={list(cfg.data.shape)} is no image, and the pipeline draws images")
    if cfg.sde.name != "reflected_ve":
        raise InputError(f"{run_dir}: sde.name={cfg.sde.name}, and the scheduler is for sde.name=reflected_ve")
    if cfg.data.get("cond_size"):
        raise InputError(f"{run_dir}: data.cond_size={cfg.data.cond_size}, and the pipeline takes classes only")


def write_diffusers(folder: Path, cfg: DictConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write a directory that ``DiffusionPipeline.from_pretrained`` reads.

    Args:
        folder: directory to make.
        cfg: configuration of the run; see ``check_diffusers``.
        tensors: weights by their names in ``ScoreModel.network``.
    """
    import diffusers

    from models.diffusers_pipeline.reflected_scheduler import ReflectedMultistepScheduler
    from models.diffusers_pipeline.score_network import ScoreNetwork

    folder.mkdir()
    process = create_process(cfg.sde)
    network = ScoreNetwork(plain(cfg.model), plain(cfg.data), plain(cfg.sde))
    network.score.network.load_state_dict(tensors)
    network.save_pretrained(folder / "unet")
    scheduler = ReflectedMultistepScheduler(sigma_min=process.sigma_min, sigma_start=process.prior_sigma)
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": ["pipeline", "ReflectedDiffusionPipeline"],
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["reflected_scheduler", "ReflectedMultistepScheduler"],
        "unet": ["score_network", "ScoreNetwork"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    places = {"pipeline": ".", "reflected_scheduler": "scheduler", "score_network": "unet"}
    for module, place in places.items():
        (folder / place / f"{module}.py").write_text(standalone((SOURCES / f"{module}.py").read_text()))
    (folder / "README.md").write_text(model_card(cfg, "diffusers"))


def standalone(source: str) -> str:
    """Return a module in which each import from ``sde`` is replaced by the text of the module that it is from.

    diffusers copies the modules of a directory one by one, so that they cannot import each other.
    """

    def text(match: re.Match[str]) -> str:
        module = (ROOT / match[1].replace(".", "/")).with_suffix(".py").read_text()
        docstring = ast.parse(module).body[0]
        return "\n".join(module.splitlines()[docstring.end_lineno :]).strip() + "\n\n\n"

    return COPIED.sub(text, source)

"""Fine-tuning: the start of a run from the weights of another one (``init_from``)."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from datasets import ImageDataset
from models.io.hub import pinned_path
from models.io.initial import InitialWeights, find_source, load_initial
from training.checkpoint import TrainState
from utils.distributed import Distributed
from utils.errors import InputError, replacing
from utils.options import plain

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What a run starts from.

    Attributes:
        name: checkpoint or exported file, of a model on the Hub with its commit.
        path: this file.
        weights: weights in it that fit the network of the run.
    """

    name: str
    path: Path
    weights: InitialWeights

    def apply(self, state: TrainState) -> None:
        """Put the weights into network and EMA; what they lack keeps its initialisation."""
        for model in (state.model, state.ema.model):
            model.network.load_state_dict(self.weights.taken, strict=False)

    def report(self, images: ImageDataset) -> None:
        """Log which tensors are taken, which are not, and whether the classes are those of the data ``images``."""
        weights = self.weights
        log.info(
            "init_from: averaged weights of %s, %d of %d tensors",
            *(self.name, len(weights.taken), len(weights.taken) + len(weights.fresh)),
        )
        for name, reason in weights.fresh.items():
            log.info("init_from: %s is freshly initialised: %s", name, reason)
        for name in weights.unused:
            log.info("init_from: %s is not used: the network has no such tensor", name)
        pairs = zip(weights.class_names, images.class_names, strict=False)
        others = [(there, here) for there, here in pairs if there != here]
        if others:
            log.warning("init_from: the classes are others, %r starts as %r, for example", *others[0][::-1])

    def write_record(self, run_dir: Path) -> None:
        """Write init_from.json: the file, its SHA-256, and the tensors that do not come from it."""
        with self.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        record = {"path": self.name, "sha256": sha256, "fresh": list(self.weights.fresh)}
        with replacing(run_dir / "init_from.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")


def load_source(cfg: DictConfig, distributed: Distributed) -> Source:
    """Load the weights that ``init_from`` of ``cfg`` names.

    Raises:
        InputError: naming ``init_from``, if they cannot be read or do not fit the network of ``cfg``.
    """
    try:
        name = distributed.run_on_main(lambda: pinned_path(cfg.init_from, find_source(cfg.init_from).absolute()))
        path = find_source(name)  # which machines that do not share their cache have to download
        model, data, sde = (plain(cfg[name]) for name in ("model", "data", "sde"))
        return Source(name, path, load_initial(path, model, data, sde, cfg.max_image_size))
    except InputError as error:
        raise InputError(f"init_from={cfg.init_from}: {error}") from error

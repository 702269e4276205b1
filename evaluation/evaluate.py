"""The work of run_eval.py: the chosen metrics, computed one after the other and written to results.json."""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from tqdm.contrib.logging import logging_redirect_tqdm

from evaluation.generate import pin_models
from evaluation.metric import EvaluationInputs, Metric, PerImage, Rows
from evaluation.output_dir import open_output, write_text
from evaluation.parts import resumable_map
from evaluation.registry import METRICS
from evaluation.report import device_name, protocol, table
from models.io.hub import pinned_path
from models.io.run_files import find_checkpoint, named_checkpoint
from utils.distributed import Distributed
from utils.signals import StopSignals

log = logging.getLogger(__name__)

FREE = (
    "ngpus",
    "debug",
    "max_image_size",
)  # keys that may change when an evaluation is resumed: no number depends on them


def evaluate(cfg: DictConfig, folder: Path, distributed: Distributed, stop: StopSignals | None = None) -> int:
    """Write results.json, and the numbers of each image, to ``folder``; resume an interrupted evaluation there.

    Args:
        cfg: configuration of run_eval.py.
        folder: output directory, on a file system that all machines share.
        distributed: communication with the other processes of the evaluation.
        stop: unused; finished parts are on disk, so a signal may end the process at any moment.

    Returns:
        0: no signal stopped it.

    Raises:
        InputError: naming the key or file at fault.
    """
    distributed.use_step_timeout()

    def find() -> list[Any]:
        path, ckpt = named_checkpoint(cfg.load_dir, cfg.eval.ckpt)
        file = path if path.is_file() else find_checkpoint(path, ckpt)
        return [pinned_path(cfg.load_dir, path), ckpt if path.is_file() else int(file.stem.split("_")[1]), str(file)]

    cfg.device = distributed.device.type
    cfg.load_dir, cfg.eval.ckpt, file = distributed.run_on_main(find)
    pin_models(cfg, distributed)
    devices = distributed.gather(device_name(distributed.device))
    evaluation = Evaluation(cfg, distributed, {} if devices is None else protocol(cfg, Path(file), devices))
    with ExitStack() as context, logging_redirect_tqdm():

        def open_here() -> None:
            with open_dict(cfg):
                cfg.inputs = evaluation.inputs.hashes
            context.enter_context(open_output(folder, cfg, "eval", FREE))

        distributed.run_on_main(open_here)
        log.info("measuring %s in %s", ", ".join(evaluation.metrics), folder)
        results = evaluation(folder)
        log.info("%s\nwith their protocol in %s", table(results), folder / "results.json")
    return 0


class Evaluation:
    """The chosen metrics, which are created and checked before the long computation.

    Attributes:
        metrics: metrics by name.
        inputs: configuration, processes and shared samples of the evaluation.

    Args:
        cfg: configuration of run_eval.py.
        distributed: communication with the other processes of the evaluation.
        protocol: first entries of the results; empty in all processes but the first.

    Raises:
        InputError: naming the key or file at fault.
    """

    def __init__(self, cfg: DictConfig, distributed: Distributed, protocol: dict[str, Any]) -> None:
        self.distributed = distributed
        self.results: dict[str, Any] = {**protocol, "metrics": {}}
        self.inputs = EvaluationInputs(cfg, distributed)
        if protocol:
            for name in ("sha256", "snapshots_sha256"):
                if name in protocol["checkpoint"]:
                    self.inputs.hashes[f"checkpoint_{name}"] = protocol["checkpoint"][name]
        chosen = {name: cfg.metrics[name] for name in METRICS if name in cfg.metrics}
        self.metrics: dict[str, Metric] = {name: METRICS[name](self.inputs, **chosen[name]) for name in chosen}

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Compute the metrics, with all processes; process 0 writes ``folder``/results.json after each."""
        computed: dict[int, Rows | None] = {}  # metrics may share the computation
        for metric in self.metrics.values():
            per_image = metric.per_image
            if id(per_image) not in computed:
                per_image.prepare(folder)
                computed[id(per_image)] = resumable_map(folder, per_image, self.distributed)
            rows = computed[id(per_image)]
            if rows is not None:
                self._record(folder, metric, per_image, rows)
        return self.results

    def _record(self, folder: Path, metric: Metric, per_image: PerImage, rows: Rows) -> None:
        for first in range(0, per_image.num_images, per_image.batch_size):
            metric.update({name: values[first : first + per_image.batch_size] for name, values in rows.items()})
        for name, result in metric.result().items():
            self.results["metrics"][name] = result.as_json()
        self.results |= per_image.entries()
        write_text(folder / "results.json", json.dumps(self.results, indent=2) + "\n")

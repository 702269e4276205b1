"""Measure a trained network: python run_eval.py load_dir=RUN 'metrics=[bpd,fid]' [overrides]; see configs/eval.yaml."""

from utils import interrupts  # noqa: I001  (before what takes a moment to import)
import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from cli.entry_point import door
from cli.evaluation_options import check_eval
from cli.options import option_keys
from utils.distributed_env import require_one_process

log = logging.getLogger(__name__)

FREE = ("ngpus", "debug")  # what may change when the work goes on: no number depends on it


@door("eval", option_keys("eval"))
def main(cfg: DictConfig) -> None:
    """Write ``results.json``, and the numbers of each image, to the output directory.

    The same command with the same ``hydra.run.dir`` goes on where it was interrupted.
    """
    require_one_process("run_eval.py")
    check_eval(cfg)  # before the imports, which take a moment

    from tqdm.contrib.logging import logging_redirect_tqdm

    from evaluation.evaluate import Evaluation
    from evaluation.output_dir import open_output
    from evaluation.report import protocol, table
    from models.io.run_files import find_checkpoint, named_checkpoint
    from utils.devices import choose_devices

    interrupts.enable_keyboard_interrupt()
    devices = choose_devices(cfg.device, cfg.ngpus)
    cfg.device = devices[0].type
    checkpoint, cfg.eval.ckpt = named_checkpoint(cfg.load_dir, cfg.eval.ckpt)
    cfg.load_dir = str(checkpoint)
    if not checkpoint.is_file():
        checkpoint = find_checkpoint(checkpoint, cfg.eval.ckpt)
        cfg.eval.ckpt = int(checkpoint.stem.split("_")[1])
    evaluation = Evaluation(cfg, devices, protocol(cfg, checkpoint, devices))
    with open_dict(cfg):
        cfg.inputs = evaluation.inputs

    folder = Path(HydraConfig.get().runtime.output_dir)
    with open_output(folder, cfg, "eval", FREE), logging_redirect_tqdm():
        log.info("measuring %s in %s", ", ".join(evaluation.chosen), folder)
        results = evaluation(folder)
        log.info("%s\nwith their protocol in %s", table(results), folder / "results.json")


if __name__ == "__main__":
    require_one_process("run_eval.py")  # and makes no directory
    main()

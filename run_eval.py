"""Measure a trained network: python run_eval.py load_dir=RUN 'metrics=[bpd,fid]' [overrides]; see configs/eval.yaml."""

from utils.signals import enable_keyboard_interrupt, exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # before the slow imports

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cli.entry_point import entry_point
from cli.evaluation_options import check_eval
from cli.options import option_keys


@entry_point("eval", option_keys("eval"))
def main(cfg: DictConfig) -> None:
    """Write ``results.json``, and the numbers of each image, to the output directory.

    The same command with the same ``hydra.run.dir`` resumes an interrupted evaluation.
    """
    check_eval(cfg)  # before the slow imports

    from cli.launch import run_distributed
    from evaluation.evaluate import evaluate

    enable_keyboard_interrupt()
    run_distributed(evaluate, cfg, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()

"""Draw samples from a trained network: python run_vis.py load_dir=RUN [overrides]; see configs/vis.yaml."""

from utils.signals import enable_keyboard_interrupt, exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # before the slow imports

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cli.entry_point import entry_point
from cli.evaluation_options import check_vis
from cli.options import option_keys


@entry_point("vis", option_keys("vis"))
def main(cfg: DictConfig) -> None:
    """Write ``images/samples_R.png`` and ``.npz`` (samples, labels) for each batch R to the output directory.

    The same command with the same ``hydra.run.dir`` draws the batches that are still missing.
    """
    check_vis(cfg)  # before the slow imports

    from cli.launch import run_distributed
    from evaluation.images_dir import generate_images

    enable_keyboard_interrupt()
    run_distributed(generate_images, cfg, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    main()

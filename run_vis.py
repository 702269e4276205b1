"""Draw samples from a trained network: python run_vis.py load_dir=RUN [overrides]; see configs/vis.yaml."""

from utils import interrupts  # noqa: I001  (before what takes a moment to import)
import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cli.entry_point import door
from cli.evaluation_options import check_vis
from cli.options import option_keys
from utils.distributed_env import require_one_process

log = logging.getLogger(__name__)

FREE = ("ngpus", "debug", "eval.rounds")  # what may change when drawing goes on: no image depends on it


@door("vis", option_keys("vis"))
def main(cfg: DictConfig) -> None:
    """Write ``images/samples_R.png`` and ``.npz`` (samples, labels) for each round R to the output directory.

    The same command with the same ``hydra.run.dir`` draws the rounds that are not there yet.
    """
    require_one_process("run_vis.py")
    check_vis(cfg)  # before the imports, which take a moment

    import torch
    from tqdm.contrib.logging import logging_redirect_tqdm

    from evaluation.generate import ImageSampler, generate_batches
    from evaluation.images_dir import missing_batches, save_batch
    from evaluation.output_dir import open_output
    from models.io.run_files import find_checkpoint, named_checkpoint
    from utils.devices import choose_devices

    interrupts.enable_keyboard_interrupt()
    devices = choose_devices(cfg.device, cfg.ngpus)
    cfg.device = devices[0].type
    run_dir, cfg.eval.ckpt = named_checkpoint(cfg.load_dir, cfg.eval.ckpt)
    cfg.load_dir = str(run_dir)
    if (run_dir / "checkpoints").is_dir():
        cfg.eval.ckpt = int(find_checkpoint(run_dir, cfg.eval.ckpt).stem.split("_")[1])
    # with several processes this one only looks whether everything is as it should be
    artist = ImageSampler(cfg, devices[0] if len(devices) == 1 else torch.device("cpu"))

    folder = Path(HydraConfig.get().runtime.output_dir) / "images"
    with open_output(folder, cfg, "vis", FREE), logging_redirect_tqdm():
        rounds = missing_batches(folder, cfg.eval.rounds)
        log.info("%d of %d rounds to draw in %s", len(rounds), cfg.eval.rounds, folder)
        columns = len(artist.classes) if len(artist.classes) > 1 else None
        for r, drawn in generate_batches(artist, rounds, cfg.eval.batch_size, devices):
            path = save_batch(folder, r, drawn, columns, cfg.eval.save_images)
            log.info("round %d: %d images, %d evaluations each, in %s", r, len(drawn.pixels), drawn.nfe, path)


if __name__ == "__main__":
    require_one_process("run_vis.py")  # and makes no directory
    main()

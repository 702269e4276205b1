"""Draw samples from a trained network: python run_vis.py load_dir=RUN [overrides]; see configs/vis.yaml."""

import logging
from pathlib import Path

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from checks import number
from doors import choose_device, door
from errors import InputError
from models import in_precision, load_pretrained
from sampling import create_sampler, guided_score
from sampling.images import save_grid, to_uint8
from sampling.labels import choose_labels
from sde import ReflectedVE
from training.seeds import Stream, derived_seed

log = logging.getLogger(__name__)


@door("vis")
def main(cfg: DictConfig) -> None:
    """Write ``images/samples_R.png`` and ``.npz`` (samples, labels) for each round R to the output directory."""
    if OmegaConf.is_missing(cfg, "load_dir"):
        raise InputError("load_dir is missing: say load_dir=RUN, a directory that run_train.py wrote")
    for key in ("eval.batch_size", "eval.rounds"):
        number(cfg, key, low=1, integer=True)
    number(cfg, "seed", low=0, integer=True)
    number(cfg, "w")
    device = choose_device(cfg.device)
    net, run = load_pretrained(cfg.load_dir, cfg.eval.ckpt, device)
    score_net = in_precision(net, cfg.precision)
    sde = ReflectedVE(run.sde.sigma_min, run.sde.sigma_max, run.sde.num_scales)
    sampler = create_sampler(cfg.sampling, sde)
    shape = (cfg.eval.batch_size, run.data.num_channels, run.data.image_size, run.data.image_size)

    folder = Path(HydraConfig.get().runtime.output_dir) / "images"
    if folder.exists():
        raise InputError(f"{folder} exists: choose another hydra.run.dir, or leave it to the default, a new directory")
    folder.mkdir(parents=True)
    OmegaConf.save(cfg, folder / "vis.yaml")
    with logging_redirect_tqdm(), tqdm(total=cfg.eval.rounds * sampler.num_steps, unit="step", disable=None) as bar:
        for r in range(cfg.eval.rounds):
            generator = torch.Generator(device).manual_seed(derived_seed(cfg.seed, Stream.SAMPLE, r))
            labels, columns = choose_labels(cfg.label, cfg.w, shape[0], net.num_classes, generator)
            x_init = sde.prior_sample(shape, generator, device)
            samples = sampler(guided_score(score_net, labels, cfg.w), x_init, generator, on_step=bar.update).samples

            arrays = {"samples": to_uint8(samples)}
            save_grid(samples, folder / f"samples_{r}.png", columns)
            if labels is not None:
                arrays["labels"] = labels.cpu().numpy()
            np.savez_compressed(folder / f"samples_{r}.npz", **arrays)
            log.info("round %d of %d: %d images in %s", r + 1, cfg.eval.rounds, shape[0], folder / f"samples_{r}.png")


if __name__ == "__main__":
    main()

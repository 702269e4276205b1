"""Train a score network: python run_train.py [overrides]; see configs/train.yaml."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from doors import choose_device, door
from training.loop import train
from training.run_dir import resumed_config


@door("train")
def main(cfg: DictConfig) -> None:
    """Train in Hydra's output directory, or go on in the directory ``resume``."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    OmegaConf.resolve(cfg)
    if cfg.resume is not None:
        overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
        cfg = resumed_config(cfg, run_dir, overrides)
    with open_dict(cfg):
        cfg.pop("resume", None)  # says how this process was started, not what the run is
    train(cfg, run_dir, choose_device(cfg.device))


if __name__ == "__main__":
    main()

"""Train a score network: python run_train.py [overrides]; see configs/train.yaml."""

import interrupts  # noqa: I001  (before what takes a moment to import)
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from checks import plain
from doors import door
from schema import check_train, train_keys
from training.seats import find_seat


@door("train", train_keys())
def main(cfg: DictConfig) -> None:
    """Train in Hydra's output directory, or go on in the directory ``resume``."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with open_dict(cfg):
        resume = cfg.pop("resume")  # says how this process was started, not what the run is
    seat = find_seat()
    if resume is None:
        check_train(cfg, cfg.ngpus if seat is None else seat.size)  # before the imports, which take a moment

    from devices import choose_device, choose_devices
    from training.data import prepare_data
    from training.launch import seat_device, train_here, train_in_seat
    from training.loop import train
    from training.run_dir import resumed_config

    interrupts.raise_from_here()
    if resume is not None:
        overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
        cfg = resumed_config(cfg, run_dir, overrides)
        check_train(cfg, cfg.ngpus if seat is None else seat.size)
    if seat is None:
        logs = plain(HydraConfig.get().job_logging, resolve=True)
        devices = choose_devices(cfg.device, cfg.ngpus)
        if len(devices) > 1:
            prepare_data(cfg)  # which may take longer than processes wait for each other
        train_here(train, cfg, run_dir, devices, logs)
    else:
        train_in_seat(train, cfg, run_dir, seat, seat_device(seat, choose_device(cfg.device)))


def check_resume(arguments: list[str]) -> None:
    """Exit with one line if ``resume=`` cannot be, before Hydra makes a directory of that name."""
    resumed = [Path(argument.removeprefix("resume=")) for argument in arguments if argument.startswith("resume=")]
    for run_dir in resumed:
        if not (run_dir / ".hydra/config.yaml").is_file():
            sys.exit(f"resume={run_dir} is not a run directory: it has no .hydra/config.yaml")
        for argument in arguments:
            if argument in ("-m", "--multirun") or argument.startswith("hydra.run.dir="):
                sys.exit(f"{argument} does not go with resume={run_dir}, which says where the run is")


if __name__ == "__main__":
    check_resume(sys.argv[1:])
    main()

"""Train a score network: python run_train.py [overrides]; see configs/train.yaml."""

from utils.signals import enable_keyboard_interrupt, exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # before the slow imports

import os
from pathlib import Path
from shlex import quote

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from cli.entry_point import entry_point
from cli.options import option_keys
from cli.overrides import is_multirun, parse_path, read_override
from training.options import check_train
from utils.distributed_env import detect_launcher
from utils.errors import InputError
from utils.hub_names import on_hub


def check_resume(arguments: list[str]) -> None:
    """Check the argument ``resume`` of the command line, before Hydra makes a directory of that name.

    Raises:
        InputError: if it is not a run directory, or cannot be combined with another argument.
    """
    read = [(argument, *read_override(argument)[1:]) for argument in arguments]
    for _, key, value in read:
        run_dir = parse_path(value) if key == "resume" else None
        if run_dir is None:
            continue
        try:
            found = bool(run_dir) and (Path(run_dir) / ".hydra/config.yaml").is_file()
        except OSError as error:
            raise InputError(f"resume={run_dir} cannot be read: {error.strerror}: {error.filename}") from error
        if not found:
            raise InputError(f"resume={run_dir} is not a run directory: it has no .hydra/config.yaml")
        for argument, other, _ in read:
            if is_multirun([argument]) or other == "hydra.run.dir":
                raise InputError(f"{argument} does not go with resume={run_dir}, which says where the run is")
            if other == "init_from":
                raise InputError(f"{argument} does not go with resume={run_dir}, which goes on with its own weights")


def check_experiment(cfg: DictConfig) -> None:
    """Raise InputError if an experiment sets keys of the network of another ``model`` than the one chosen."""
    hydra, name = HydraConfig.get(), cfg.model.get("name")
    experiment = hydra.runtime.choices.get("experiment")
    typed = {read_override(override)[1] for override in hydra.overrides.task}
    if experiment is None:
        return

    from models.create import NETWORKS, model_options, networks_with  # imports torch

    own = model_options(name) if name in NETWORKS else cfg.model
    foreign = [str(key) for key in cfg.model if key not in own and f"model.{key}" not in typed]
    of = [other for other in NETWORKS if model_options(other).keys() >= set(foreign)]
    advice = [quote(f"~model.{key}") for key in foreign]
    if cfg.data.get("classes") is True and name in NETWORKS and name not in networks_with("num_classes"):
        advice.append("data.classes=False")
    if foreign and of:
        raise InputError(
            f"experiment={experiment} sets {', '.join(f'model.{key}' for key in foreign)} of model={' or '.join(of)}, "
            f"not of model={name}: take them out, {' '.join(advice)}, "
            f"or leave out model={name}"
        )


@entry_point("train", option_keys("train"), check_resume)
def main(cfg: DictConfig) -> None:
    """Train in Hydra's output directory, or resume the run in the directory ``resume``."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with open_dict(cfg):
        resume = cfg.pop("resume")  # is about this start, not part of the run's configuration
    env = detect_launcher()
    processes = cfg.ngpus if env is None else env.world_size
    if resume is None:
        if isinstance(cfg.init_from, str) and cfg.init_from and not on_hub(cfg.init_from):
            cfg.init_from = os.path.abspath(cfg.init_from)  # the run may be started again from another directory
        check_experiment(cfg)
        if "shape" in cfg.data:
            from datasets.registry import complete_data  # imports torch

            complete_data(cfg.data)
        check_train(cfg, processes)  # before the slow imports

    from cli.launch import run_distributed
    from models.io.hub import local_path
    from training.data import prepare_dataset
    from training.loop import train
    from training.run_dir import resumed_config
    from utils.devices import choose_devices

    enable_keyboard_interrupt()
    if resume is not None:
        overrides = [o for o in HydraConfig.get().overrides.task if read_override(o)[1] != "resume"]
        cfg = resumed_config(cfg, run_dir, overrides)
        check_train(cfg, processes)
    if env is None and len(choose_devices(cfg.device, cfg.ngpus)) > 1:
        prepare_dataset(cfg)  # may take longer than processes wait for each other, as may a download
        if cfg.init_from is not None:
            local_path(cfg.init_from)
    run_distributed(train, cfg, run_dir, cfg.training.startup_timeout, cfg.training.step_timeout)


if __name__ == "__main__":
    main()

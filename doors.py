"""What the entry scripts share: Hydra with one-line errors, a directory nobody else has, the device."""

import functools
import secrets
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import hydra
import torch
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from errors import CleanError, InputError

_NOW = datetime.now()
_UNIQUE = secrets.token_hex(3)  # two processes that start in the same second must not share a directory


def _output_dir(root: str, resume: str | None = None) -> str:
    """The directory to continue, or a new ROOT/DATE/TIME-UNIQUE."""
    return str(resume) if resume is not None else f"{root}/{_NOW:%Y.%m.%d}/{_NOW:%H%M%S}-{_UNIQUE}"


OmegaConf.register_new_resolver("output_dir", _output_dir, replace=True)


def door(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make ``main(cfg)`` an entry script on configs/``config_name``.yaml.

    A CleanError or OSError shows as its message without a traceback, unless debug=true or HYDRA_FULL_ERROR=1. Any
    failure exits non-zero, in a multirun after the other jobs are done.
    """

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def job(cfg: DictConfig) -> None:
            try:
                main(cfg)
            except (CleanError, OSError) as error:  # an OSError names its file
                if cfg.debug:
                    raise
                raise CompactHydraException(str(error)) from error

        configs = str(Path(__file__).resolve().parent / "configs")
        run = hydra.main(version_base="1.3", config_path=configs, config_name=config_name)(job)

        def entry() -> None:
            try:
                run()
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)

        return entry

    return decorate


def choose_device(device: str) -> torch.device:
    """The torch device for the key ``device``: auto, cpu or cuda.

    Raises:
        InputError: for another name, or for cuda where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device={device}: known are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda, but torch sees no GPU here: use device=auto or device=cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def choose_devices(device: str, ngpus: int) -> list[torch.device]:
    """The device of each of ``ngpus`` processes: the first GPUs, or the CPU for all.

    Raises:
        InputError: as ``choose_device``, or for more GPUs than there are.
    """
    kind = choose_device(device)
    if kind.type == "cpu":
        return [kind] * ngpus
    if ngpus > torch.cuda.device_count():
        raise InputError(f"ngpus={ngpus}, but torch sees {torch.cuda.device_count()} GPUs here")
    return [torch.device("cuda", index) for index in range(ngpus)]

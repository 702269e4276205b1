"""What the entry scripts share: Hydra with one-line errors, a directory nobody else has."""

import functools
import logging
import os
import secrets
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import hydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf

from errors import CleanError
from training.launch import same_for_all

ROOT = Path(__file__).resolve().parent

# What a launcher starts in another process finds our modules, from whatever folder.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
logging.raiseExceptions = False  # a full disk shows in what the run itself writes, not in every line it logs


@functools.cache
def _stamp() -> str:
    """DATE/TIME-UNIQUE: two processes that start in the same second share no directory, unless they work together."""
    return same_for_all(f"{datetime.now():%Y.%m.%d/%H%M%S}-{secrets.token_hex(3)}")


def _output_dir(root: str, resume: str | None = None) -> str:
    """The directory to continue, or a new one in ``root``."""
    return str(resume) if resume is not None else f"{root}/{_stamp()}"


# With its cache a launcher's job, also a requeued one, has the directory that was chosen when it was submitted.
OmegaConf.register_new_resolver("output_dir", _output_dir, replace=True, use_cache=True)


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

        run = hydra.main(version_base="1.3", config_path=str(ROOT / "configs"), config_name=config_name)(job)

        def entry() -> None:
            try:
                run()
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)

        return entry

    return decorate

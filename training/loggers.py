"""Loggers that show a run's metrics and samples: TensorBoard, Weights & Biases, or none."""

import importlib.util
import secrets
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, Literal, Protocol

from omegaconf import DictConfig

from utils.errors import InputError, writing
from utils.options import Name, Option, options_of, plain


class Logger(Protocol):
    """Protocol of a logger, which shows the metrics and samples of a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log ``values`` at ``step``; a name may be GROUP/NAME."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Log the image file ``path`` at ``step``."""

    def close(self) -> None:
        """Flush all entries and close the logger."""


class NullLogger:
    """A logger that discards everything: the run only has its own files."""

    def __init__(self, run_dir: Path, step: int, config: dict[str, Any]) -> None:
        pass

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Discard the values."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Discard the image."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """A logger to TensorBoard, in RUN/tensorboard.

    Events after ``step``, at which a run is resumed, are purged: a killed run logged them and will log them again.
    """

    def __init__(self, run_dir: Path, step: int, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a slow import, only for the process that writes

        shown = threading.excepthook
        if not (isinstance(shown, partial) and shown.func is _show_failed_thread):
            threading.excepthook = partial(_show_failed_thread, shown)
        self._folder = run_dir / "tensorboard"
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As in ``Logger``."""
        with writing(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        """As in ``Logger``."""
        import numpy as np  # not needed to check an option, which this module is imported for
        from PIL import Image

        pixels = np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))
        with writing(self._folder):
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """As in ``Logger``."""
        self._writer.close()


def _show_failed_thread(shown: Callable[[threading.ExceptHookArgs], object], args: threading.ExceptHookArgs) -> None:
    """Report the exception that ended a thread, unless it is TensorBoard's writer: its next call raises it again."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
        shown(args)


class WandB:
    """A logger to Weights & Biases, which resumes the run there whose id is stored in RUN/wandb_id.

    Raises:
        InputError: if wandb.init fails.
    """

    def __init__(
        self,
        run_dir: Path,
        step: int,
        config: dict[str, Any],
        *,
        project: Name,
        entity: Name | None,
        mode: Literal["online", "offline"],
    ) -> None:
        import wandb  # an optional package

        path = run_dir / "wandb_id"
        with writing(path):
            if not path.exists():
                path.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                id=path.read_text().strip(),
                resume="allow",
                project=project,
                entity=entity,
                mode=mode,
                name=run_dir.name,
                dir=str(run_dir),
                config=config,
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"logger=wandb: {reason}; logger.mode=offline needs no account") from error
        self._image = wandb.Image
        self._run.define_metric("*", step_metric="step")  # wandb's own step counter cannot go back after a kill

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As in ``Logger``."""
        self._run.log({**values, "step": step})

    def image(self, step: int, name: str, path: Path) -> None:
        """As in ``Logger``."""
        self._run.log({name: self._image(str(path)), "step": step})

    def close(self) -> None:
        """As in ``Logger``."""
        self._run.finish()


LOGGERS: dict[str, Callable[..., Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "none": NullLogger}
GIVEN = ("run_dir", "step", "config")


def logger_options(name: str) -> dict[str, Option]:
    """Return the options of the section ``logger`` for the logger ``name``."""
    return {"name": Option(Name)} | options_of(LOGGERS[name], leave_out=GIVEN)


def check_logger(name: str) -> None:
    """Raise InputError if the logger ``name`` needs a package that is not installed."""
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError("logger=wandb needs a package that is not installed: pip install wandb")


def open_logger(cfg: DictConfig, run_dir: Path, step: int) -> Logger:
    """Open the logger that the configuration names, for the run in ``run_dir``, which continues at ``step``."""
    options = {key: value for key, value in plain(cfg.logger).items() if key != "name"}
    return LOGGERS[cfg.logger.name](run_dir, step, plain(cfg), **options)


def watched_by(cfg: DictConfig, run_dir: Path) -> str | None:
    """Return the command or the place that shows the run to a user; None without a logger."""
    name = cfg.logger.name
    if name == "tensorboard":
        return f"tensorboard --logdir {quote(str(run_dir))}"
    return f"wandb, project {cfg.logger.project} ({cfg.logger.mode})" if name == "wandb" else None

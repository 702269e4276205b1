"""Where a run can be watched: TensorBoard, Weights & Biases, or nowhere but in its own files."""

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
    """What watches a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show ``values`` at ``step``; a name may be GROUP/NAME."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Show the picture ``path``."""

    def close(self) -> None:
        """Write what is still to be written."""


class NullLogger:
    """A logger that shows nothing: the run has its files alone."""

    def __init__(self, run_dir: Path, step: int, config: dict[str, Any]) -> None:
        pass

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class TensorBoard:
    """Events in RUN/tensorboard. What a killed run showed after ``step``, where it goes on, is taken back."""

    def __init__(self, run_dir: Path, step: int, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a moment, of processes that write only

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
    """Show what ended a thread, unless it is a write of TensorBoard, which raises it again in the run's next call."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
        shown(args)


class WandB:
    """A run of Weights & Biases, the same one whenever the run goes on: its id is kept in RUN/wandb_id.

    Raises:
        InputError: if it refuses.
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
        import wandb  # an option, not a requirement

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
        self._run.define_metric("*", step_metric="step")  # its own count cannot go back to where a kill left the run

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
    """Raise InputError if the logger ``name`` wants a package that is not here."""
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError("logger=wandb wants a package that is not here: pip install wandb")


def open_logger(cfg: DictConfig, run_dir: Path, step: int) -> Logger:
    """Open the logger that the configuration names, for the run in ``run_dir`` that goes on at ``step``."""
    options = {key: value for key, value in plain(cfg.logger).items() if key != "name"}
    return LOGGERS[cfg.logger.name](run_dir, step, plain(cfg), **options)


def watched_by(cfg: DictConfig, run_dir: Path) -> str | None:
    """How a user watches the run, or None."""
    name = cfg.logger.name
    if name == "tensorboard":
        return f"tensorboard --logdir {quote(str(run_dir))}"
    return f"wandb, project {cfg.logger.project} ({cfg.logger.mode})" if name == "wandb" else None

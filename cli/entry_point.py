"""Set-up of an entry script: Hydra with one-line errors, and an output directory of its own for each run.

Neither this module nor the top of a script imports torch, so that ``--help`` and a wrong option answer at once.
"""

import contextlib
import functools
import itertools
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from shlex import quote

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cli.options import CONFIGS, help_text, hint
from cli.overrides import quote_paths, read_override
from utils.distributed_env import detect_launcher, wait_for_process_0
from utils.errors import InputError, UserError, printable
from utils.options import did_you_mean, flat, plain

ROOT = Path(__file__).resolve().parent.parent

log = logging.getLogger(__name__)


def set_up() -> None:
    """Prepare this process, or a job of a launcher, for Hydra with the configurations of this project.

    Registers the resolvers ``output_dir`` and ``options`` and the launchers, adds the project to PYTHONPATH for
    processes started from any folder, and silences logging's own errors: a full disk fails the run's writes anyway.
    """
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    logging.raiseExceptions = False
    # The cache gives a launcher's job, also a requeued one, the directory that was chosen when it was submitted.
    OmegaConf.register_new_resolver("output_dir", _output_dir, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("options", _help, replace=True)  # in configs/hydra/help
    plugins = Plugins.instance()  # finds those of hydra-submitit-launcher before they are replaced
    from cli.slurm_launcher import LAUNCHERS

    plugins.class_name_to_class |= LAUNCHERS


@functools.cache
def _stamp() -> str:
    """Return DATE/TIME-UNIQUE: processes of the same second share no directory, unless they work together."""
    own = f"{datetime.now():%Y.%m.%d/%H%M%S}-{secrets.token_hex(3)}"
    if detect_launcher() is None:
        return own
    from cli.launch import broadcast_run_id  # imports torch; only needed with several processes

    return broadcast_run_id(own)


def _output_dir(root: str, resume: str | None = None) -> str:
    """Return the run directory to resume, or a new one in ``root``."""
    return str(resume) if resume is not None else f"{root}/{_stamp()}"


def _help(script: str) -> str:
    """Return the options of a script if --help was typed, else "": Hydra resolves its help text at every start."""
    typed = any(argument == "-h" or (len(argument) > 2 and "--help".startswith(argument)) for argument in sys.argv[1:])
    return help_text(script) if typed else ""


class _Outcome:
    """The outcome of the jobs that this process ran; it is kept from Hydra, which would print more lines.

    Attributes:
        here: whether this process was started by a user, and not by a launcher.
        failed: whether a job ended with a one-line error, which was printed.
        bug: any other exception that a job raised.
    """

    here = False
    failed = False
    bug: BaseException | None = None


def entry_point(
    config_name: str, keys: Iterable[str], check: Callable[[list[str]], None] = lambda _: None
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorate ``main(cfg)`` as an entry script with the configuration configs/``config_name``.yaml.

    A UserError, an OSError and an error of Hydra or a launcher are printed as one line without a traceback, unless
    debug=true or HYDRA_FULL_ERROR=1. Any failure exits non-zero, in a multirun after the other jobs are done.

    Args:
        config_name: name of the configuration.
        keys: names of all options; the nearest is suggested for one that does not exist.
        check: function of the arguments as they were typed, called before Hydra makes a directory; raises InputError.
    """

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def job(cfg: DictConfig) -> None:
            try:
                _resolve(cfg)
                main(cfg)
            except (UserError, OSError) as error:  # an OSError names its file
                if not _Outcome.here:  # a launcher's job writes it to its log and to that of the run
                    log.error("%s", printable(str(error)), exc_info=cfg.debug is True)
                if cfg.debug is True:
                    _Outcome.bug = error
                    raise
                if not _Outcome.here:
                    raise CompactHydraException(str(error)) from error
                _Outcome.failed = True
                env = detect_launcher()
                if isinstance(error, InputError) and env is None:
                    print(printable(str(error)), file=sys.stderr)
                    _remove_empty_directory()
                elif isinstance(error, InputError) and env is not None and env.rank > 0:
                    wait_for_process_0()  # which finds the same error and reports it
                else:
                    log.error("%s", printable(str(error)))
            except Exception as error:
                if _is_out_of_memory(error) and cfg.debug is not True:
                    _Outcome.failed = True
                    reason = str(error).partition("\n")[0] or type(error).__name__
                    log.error("%s", message := f"out of memory: {printable(reason)}")
                    if not _Outcome.here:
                        raise CompactHydraException(message) from error
                    return
                log.error("%s: %s", type(error).__name__, printable(str(error)), exc_info=not _Outcome.here)
                _Outcome.bug = error
                raise

        run = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)

        def entry() -> None:
            full = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
            _Outcome.here = True
            typed = sys.argv[1:]
            set_up()
            try:
                check(typed)
                sys.argv[1:] = quote_paths(typed)
                run()
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                if full or error is _Outcome.bug:
                    raise
                print(printable(_in_one_line(error, keys, typed)), file=sys.stderr)
                sys.exit(1)
            if _Outcome.failed:
                sys.exit(1)

        return entry

    return decorate


def _is_out_of_memory(error: Exception) -> bool:
    message = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message


def _resolve(cfg: DictConfig) -> None:
    """Replace the interpolations in ``cfg`` by their values.

    Raises:
        InputError: naming the key whose interpolation fails.
    """
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
    else:
        return
    for key, value in flat(plain(cfg)).items():
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.select(cfg, key)
            except OmegaConfBaseException:
                raise InputError(f"{key}={value}: {reason}") from None
    raise InputError(reason)


def _in_one_line(error: Exception, keys: Iterable[str], typed: list[str]) -> str:
    """Return an error of Hydra, OmegaConf or a launcher as one line, without its pointers to web pages and objects."""
    message = str(error)
    if unknown := re.match(r"Could not override '([^']+)'", message):
        return f"{unknown[1]}: no such option{hint(unknown[1], keys)}"
    if missing := re.search(r"Could not (?:find|load) '(?:hydra/)?([^/']+)/([^']+)'", message):
        group, name = missing[1], missing[2]
        folders = (CONFIGS / group, CONFIGS / "hydra" / group)
        files = [path.relative_to(folder).with_suffix("") for folder in folders for path in folder.rglob("*.yaml")]
        known = sorted(map(str, files))
        return f"{group}={name}: known are {', '.join(known)}{did_you_mean(name, known)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {_explain_syntax(error.override or '', message.splitlines()[0], typed)}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("See https", "full_key", "object_type", "reference_type"))]
    return " ".join(kept) or type(error).__name__


def _explain_syntax(argument: str, reason: str, typed: list[str]) -> str:
    """Explain why Hydra's grammar cannot read an ``argument``, one of those ``typed``, and how to write it."""
    prefix, key, value = read_override(argument)
    if key:
        whole = QuotedString(value, Quote.double).with_quotes()
        advice = "in quotes, and these in the shell's, it is taken as it stands"
        return f"{reason}; {advice}: {quote(f'{prefix}{key}={whole}')}"
    place = typed.index(argument) if argument in typed else 0
    if place and read_override(typed[place - 1])[1]:
        torn = itertools.takewhile(lambda other: not read_override(other)[1], typed[place:])
        whole = quote(" ".join([typed[place - 1], *torn]))
        return f"not KEY=VALUE; if it belongs to what is before it, quote the whole: {whole}"
    return "not KEY=VALUE"


def _remove_empty_directory() -> None:
    """Remove the output directory that Hydra made for a job with bad input, if it is empty."""
    folder, start = (Path(getattr(HydraConfig.get().runtime, name)) for name in ("output_dir", "cwd"))
    if _stamp.cache_info().currsize and _stamp() in str(folder) and folder.is_relative_to(start):
        with contextlib.suppress(OSError):  # it is not empty
            while folder != start:
                folder.rmdir()
                folder = folder.parent

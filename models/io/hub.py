"""Models on the Hugging Face Hub: their files, in the cache of huggingface_hub."""

import glob
from dataclasses import replace
from pathlib import Path, PurePosixPath

from utils.errors import InputError
from utils.hub_names import HubName, hub_text, on_hub, parse_hub_name

# Only what is read of a run or an export; code, pictures and weights of other formats stay on the Hub.
FILES = (
    ".hydra/config.yaml",
    "checkpoints/checkpoint*.pth",
    "checkpoints.json",
    "ema/step_*.safetensors",
    "tuned/sampling.json",
    "model.safetensors",
)


def local_path(path: str | Path) -> Path:
    """Return ``path`` itself, or for a model on the Hub its place in the cache, after a download if it is not there.

    Args:
        path: path of a file or directory, or name on the Hub (see utils/hub_names.py).

    Raises:
        InputError: naming ``path``, if there is no such model, or it cannot be downloaded.
    """
    if not on_hub(path):
        return Path(path)
    name = parse_hub_name(path)
    return _download(hub_text(path), name) / name.file


def pinned_path(path: str | Path, local: Path) -> str:
    """Return ``local``, or if ``path`` is on the Hub the name of ``local`` there, with the commit as revision.

    Args:
        path: what ``local`` was found by.
        local: path in the directory of the model that ``path`` names, or this directory.
    """
    if not on_hub(path):
        return str(local)
    commit = next(folder for folder in (local, *local.parents) if folder.parent.name == "snapshots")
    file = "" if local == commit else local.relative_to(commit).as_posix()
    return str(replace(parse_hub_name(path), revision=commit.name, file=file))


def _patterns(file: str) -> list[str]:
    """Return the patterns of the files to download: ``FILES`` of the directory that ``file`` is or is of, or itself."""
    if file.endswith(".safetensors"):
        return [glob.escape(file)]
    run = PurePosixPath(file)
    if run.suffix == ".pth":  # RUN/checkpoints/checkpoint_N.pth
        run = run.parent.parent
    return [str(PurePosixPath(glob.escape(str(run))) / pattern) for pattern in FILES]


def _download(path: str, name: HubName) -> Path:
    """Return the directory of a commit in the cache of huggingface_hub, with the files of a model in it."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise InputError(f"{path} needs the package huggingface_hub: pip install huggingface_hub") from error
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that no file matches is found where it is read
    try:
        patterns = _patterns(name.file)
        return Path(huggingface_hub.snapshot_download(name.repo, revision=name.revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        reason = "its owner gives access on request: ask for it there, and log in by: hf auth login"
        raise InputError(f"{path}: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        reason = "there is no such model, or it is private: check the name, or log in by: hf auth login"
        raise InputError(f"{path}: {reason}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{path}: the model has no revision {name.revision}") from error
    except errors.LocalEntryNotFoundError as error:
        reason = "it is not complete in the cache, and the Hub cannot be reached or HF_HUB_OFFLINE is set"
        raise InputError(f"{path}: {reason}") from error
    except Exception as error:  # of many types, from names that are not valid to a connection that breaks
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be downloaded: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)

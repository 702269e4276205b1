"""The directory of results of run_vis.py or run_eval.py: its lock, its configuration, and atomic writes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf

from utils.errors import InputError, replacing, writing
from utils.locks import exclusive
from utils.old_keys import update_old_keys
from utils.options import flat, plain

EARLIER = ("logs", ".lock", ".rendezvous")  # files that are written before the configuration


@contextmanager
def open_output(folder: Path, cfg: DictConfig, name: str, free: Sequence[str]) -> Iterator[None]:
    """Lock ``folder`` for this process, if it is new or has results of the same configuration.

    Writes ``NAME.yaml``, the configuration.

    Args:
        folder: directory, made if it is not there.
        cfg: configuration that the results depend on.
        name: name of the script, run_NAME.py.
        free: keys that may change when the work is resumed.

    Raises:
        InputError: naming the key that differs; or if the folder has other files, or another process has locked it.
    """
    path = folder / f"{name}.yaml"
    if folder.exists() and not path.is_file() and any(entry.name not in EARLIER for entry in folder.iterdir()):
        raise InputError(f"{folder} exists and run_{name}.py did not write it: choose another hydra.run.dir")
    with exclusive(folder, f"another run_{name}.py writes there"):
        wanted = flat(plain(cfg))
        if path.exists():
            try:
                written = flat(update_old_keys(plain(OmegaConf.load(path))))
            except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, AttributeError) as error:
                raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
            for key in sorted((written.keys() | wanted.keys()) - set(free)):
                if written.get(key) != wanted.get(key):
                    raise InputError(
                        f"{folder} exists, made with {key}={written.get(key)}, not {wanted.get(key)}: choose another "
                        "hydra.run.dir, or leave it to the default, a new directory"
                    )
        write_text(path, OmegaConf.to_yaml(cfg))
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file atomically."""
    named: dict[str, Any] = {**arrays}  # not allow_pickle=False: numpy before 2.2 stores that as an array
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **named)

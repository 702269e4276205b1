"""The sampler that ``sampling.method=auto`` stands for: by the number of evaluations, or as tuned for a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sampling.few_steps import DEFAULT_STEPS, Eta, Multistep, NoiseLevels, UniPC
from sde import Process
from utils.errors import InputError
from utils.options import Count, Name, Seed, check_section, options_of

AUTO = "auto"
# Without tuning: within the errors none of those compared in docs/results.md is better for every network.
DEFAULT: dict[str, Any] = {"method": "multistep", "sigmas": None, "eta": 0.0}
MAX_BYTES = 2**20
FewSteps = Literal["multistep", "unipc"]
NumEvaluations = Annotated[int, Field(ge=2, le=10**6)]


@dataclass(frozen=True)
class Tuned:
    """A sampler of few evaluations that ``sampling.tune`` has found for a network.

    Attributes:
        method: name of the sampler.
        sigmas: its noise levels.
        eta: noise of the steps of ``Multistep``; 0 for the other.
        checkpoint: name of the file of the network.
        samples: number of samples of each comparison in the search.
        seed: seed of their noise.
        energy_distance: distance of its samples to the training data; and its standard error.
        default: the same for the sampler that ``auto`` would take otherwise, with the same seeds.
    """

    method: FewSteps
    sigmas: NoiseLevels
    eta: Eta
    checkpoint: Name
    samples: Count
    seed: Seed
    energy_distance: tuple[float, float] | list[float]
    default: tuple[float, float] | list[float]


def tuned_path(run_dir: Path) -> Path:
    """Return the file of a run directory that ``python -m sampling.tune`` writes."""
    return run_dir / "tuned/sampling.json"


def read_tuned(run_dir: Path, process: Process) -> dict[int, Tuned]:
    """Read the samplers tuned for a run, by their number of evaluations; an empty dictionary if there are none.

    Raises:
        InputError: naming the file, if it cannot be read or does not fit the process.
    """
    path = tuned_path(run_dir)
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"larger than {MAX_BYTES} bytes")
        content = json.loads(path.read_text())
        entries = content["tuned"]
        if not isinstance(entries, dict):
            raise InputError("tuned is no mapping")
        tuned = {}
        for number, entry in entries.items():
            check_section(entry, options_of(Tuned), f"tuned.{number}")
            if not number.isascii() or not number.isdigit() or int(number) != len(entry["sigmas"]):
                raise InputError(f"tuned.{number} has {len(entry['sigmas'])} noise levels")
            tuned[int(number)] = Tuned(**entry)
            create_few_steps(process, entry["method"], entry["sigmas"], entry["eta"])  # checks the levels
    except (InputError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        fault = " ".join(str(error).split())[:200] if isinstance(error, InputError) else type(error).__name__
        raise InputError(f"{path} cannot be used ({fault}): delete it, or write it again by sampling.tune") from error
    return tuned


def create_few_steps(process: Process, method: FewSteps, sigmas: Sequence[float], eta: float) -> Multistep | UniPC:
    """Create the sampler with the fields of a ``Tuned``."""
    levels = tuple(sigmas)
    return UniPC(process, sigmas=levels) if method == "unipc" else Multistep(process, sigmas=levels, eta=eta)


def resolve_auto(cfg: Mapping[str, Any], tuned: Mapping[int, Tuned] | None = None) -> dict[str, Any]:
    """Return a ``sampling`` configuration without ``method=auto``: that of the sampler which it stands for.

    The sampler has as many steps as evaluations, less the one of ``denoiser=mean``. It is the one ``tuned`` for this
    number, or else ``DEFAULT``.

    Args:
        cfg: configuration; one with another method is returned as it is.
        tuned: samplers tuned for the network, by their number of evaluations.

    Raises:
        InputError: for an option that ``auto`` decides by itself, or ``nfe`` without ``auto``.
    """
    if cfg["method"] != AUTO:
        if cfg.get("nfe") is not None:
            raise InputError(f"sampling.nfe={cfg['nfe']} is for sampling.method=auto: others take sampling.steps")
        return dict(cfg)
    for key in ("steps", "sigmas", "eta"):
        if cfg.get(key):
            raise InputError(f"sampling.{key}={cfg[key]} does not go with sampling.method=auto: use sampling.nfe")
    nfe = cfg.get("nfe") or DEFAULT_STEPS
    steps = nfe - (cfg.get("denoiser") == "mean")
    if tuned and steps in tuned:
        found = tuned[steps]
        chosen: dict[str, Any] = {"method": found.method, "sigmas": list(found.sigmas), "eta": found.eta}
    else:
        chosen = DEFAULT
    return {**cfg, "steps": steps, "nfe": None, **chosen}

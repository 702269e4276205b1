"""Diffusion processes: noise schedules, transition densities, domains and priors, as functions of tensors."""

from collections.abc import Mapping
from typing import Any

from sde import cube, heat_kernel
from sde.base import ElementwiseProcess, GeometricSchedule, Process
from sde.reflected_simplex import ReflectedSimplex
from sde.reflected_ve import ReflectedVE
from sde.ve import VE
from utils.options import Option, check_name, one_of, options_of

__all__ = [
    "VE",
    "ElementwiseProcess",
    "GeometricSchedule",
    "Process",
    "ReflectedSimplex",
    "ReflectedVE",
    "create_process",
    "cube",
    "heat_kernel",
    "process_options",
]

PROCESSES: dict[str, type] = {"reflected_ve": ReflectedVE, "ve": VE, "reflected_simplex": ReflectedSimplex}
DEFAULT = "reflected_ve"  # of a run from before there was a choice
PUBLISHED = "vesde"  # what the published configurations call the reflected process


def process_options(name: str) -> dict[str, Option]:
    """Return the options of the section ``sde`` for the process ``name``.

    Raises:
        InputError: for an unknown process.
    """
    check_name("sde.name", name, PROCESSES)
    return {"name": Option(one_of(PROCESSES).annotation, required=False)} | options_of(PROCESSES[name])


def create_process(sde: Mapping[str, Any]) -> Process:
    """Build the process that an ``sde`` configuration names.

    Args:
        sde: ``name``, a key of ``PROCESSES``, and the arguments of that process; other keys are ignored.

    Raises:
        InputError: for an unknown name, or an argument out of range.
    """
    name = sde.get("name", DEFAULT)
    name = DEFAULT if name == PUBLISHED else name
    known = process_options(name)
    return PROCESSES[name](**{key: value for key, value in sde.items() if key in known and key != "name"})

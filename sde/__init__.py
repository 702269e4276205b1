"""Diffusion processes: noise schedules, transition densities, domains and priors, as functions of tensors."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sde import cube, heat_kernel
from sde.base import GeometricSchedule, Process
from sde.reflected_ve import ReflectedVE
from sde.ve import VE
from utils.checks import OneOf

__all__ = ["VE", "GeometricSchedule", "Process", "ReflectedVE", "create_process", "cube", "heat_kernel"]

PROCESSES: dict[str, type] = {"reflected_ve": ReflectedVE, "ve": VE}
DEFAULT = "reflected_ve"  # of a run from before there was a choice
PUBLISHED = "vesde"  # what the published configurations call the reflected process


def create_process(sde: Mapping[str, Any]) -> Process:
    """Build the process that an ``sde`` configuration names.

    Args:
        sde: ``name``, a key of ``PROCESSES``, and the arguments of that process; other keys are ignored.

    Raises:
        InputError: for an unknown name, or an argument out of range.
    """
    name = sde.get("name", DEFAULT)
    name = DEFAULT if name == PUBLISHED else name
    OneOf(tuple(PROCESSES))("sde.name", name)
    known = {field.name for field in fields(PROCESSES[name])}
    return PROCESSES[name](**{key: value for key, value in sde.items() if key in known})

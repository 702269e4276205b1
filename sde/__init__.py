"""The process: the cube, its heat kernel, and the noise schedule. Pure functions of tensors."""

from sde import cube, heat_kernel
from sde.reflected_ve import ReflectedVE

__all__ = ["ReflectedVE", "cube", "heat_kernel"]

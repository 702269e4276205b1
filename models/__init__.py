"""Score networks, built from plain keyword arguments, and trained ones loaded from a run directory."""

from models.create import create_model
from models.pretrained import load_pretrained

__all__ = ["create_model", "load_pretrained"]

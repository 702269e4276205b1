"""Score networks, built from plain keyword arguments, and trained ones loaded from a model directory."""

from models.create import create_model
from models.precision import in_precision
from models.pretrained import load_denoiser, load_pretrained

__all__ = ["create_model", "in_precision", "load_denoiser", "load_pretrained"]

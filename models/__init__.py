"""Score networks, built from plain keyword arguments, and trained ones loaded from a model directory."""

from models.compiled import compile_network, compiled
from models.create import create_model
from models.io.pretrained import load_denoiser, load_pretrained
from models.layers import ScoreNetwork, recompute_activations
from models.precision import in_precision

__all__ = [
    "ScoreNetwork",
    "compile_network",
    "compiled",
    "create_model",
    "in_precision",
    "load_denoiser",
    "load_pretrained",
    "recompute_activations",
]

"""Score models: networks, parametrizations of their output, and trained ones loaded from a model directory."""

from models.compiled import compile_network, compiled
from models.create import create_model
from models.io.pretrained import load_denoiser, load_pretrained
from models.layers import Network, recompute_activations
from models.score_model import NULL_LABEL, ScoreModel, null_like

__all__ = [
    "NULL_LABEL",
    "Network",
    "ScoreModel",
    "compile_network",
    "compiled",
    "create_model",
    "load_denoiser",
    "load_pretrained",
    "null_like",
    "recompute_activations",
]

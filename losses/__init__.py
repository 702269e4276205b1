"""Training objectives: score matching, distributions of the noise level, weightings."""

from losses.noise_levels import LogNormal, NoiseLevelSampler, PiecewiseUniform, UniformTime
from losses.score_matching import score_matching_loss
from losses.weighting import DiffusionSquared, SigmaSquared, Weighting

__all__ = [
    "DiffusionSquared",
    "LogNormal",
    "NoiseLevelSampler",
    "PiecewiseUniform",
    "SigmaSquared",
    "UniformTime",
    "Weighting",
    "score_matching_loss",
]

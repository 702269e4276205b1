"""Training objectives: score matching, distributions of the noise level, weightings."""

from losses.create import Objective, create_objective
from losses.loss_history import LossHistory
from losses.noise_levels import LogNormal, LossAdaptive, NoiseLevelSampler, PiecewiseUniform, UniformTime
from losses.score_matching import score_matching_loss
from losses.weighting import DiffusionSquared, LogVariance, SigmaSquared, Weighting

__all__ = [
    "DiffusionSquared",
    "LogNormal",
    "LogVariance",
    "LossAdaptive",
    "LossHistory",
    "NoiseLevelSampler",
    "Objective",
    "PiecewiseUniform",
    "SigmaSquared",
    "UniformTime",
    "Weighting",
    "create_objective",
    "score_matching_loss",
]

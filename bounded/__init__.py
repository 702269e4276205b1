"""Densities of bounded data in the manner of scikit-learn: ``BoundedDiffusion``."""

from bounded.estimator import BoundedDiffusion

__all__ = ["BoundedDiffusion"]

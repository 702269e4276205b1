"""Training objectives."""

from losses.score_matching import score_matching_loss

__all__ = ["score_matching_loss"]

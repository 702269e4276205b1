"""Evaluation of a trained network: likelihoods and the quality of its samples."""

from evaluation.elbo import elbo
from evaluation.likelihood import log_likelihood

__all__ = ["elbo", "log_likelihood"]

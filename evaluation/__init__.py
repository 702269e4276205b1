"""Judging a model: likelihoods, and what it draws."""

from evaluation.elbo import elbo
from evaluation.likelihood import log_likelihood

__all__ = ["elbo", "log_likelihood"]

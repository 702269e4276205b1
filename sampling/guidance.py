"""Guidance: scores that are extrapolated away from those of a worse model.

Each function is on score functions, (x, sigma) -> score with x (B, ...) and sigma (B,), or on their values;
``guided_score`` puts together what the options ask for. The difference of two scores is that of a network with and
without its label or condition (classifier-free guidance, Ho & Salimans 2022), or that of a network and a weaker one
(autoguidance, Karras et al. 2024).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models import null_like
from models.parametrization import expand
from sampling.base import ScoreFn
from sde import Process
from utils.guidance_options import GuidanceOptions

ScoreNetwork = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# (x, sigma, rows) -> the score of each of the B points, and the score to guide away from of those in ``rows``
ScorePair = Callable[[Tensor, Tensor, Tensor | slice], tuple[Tensor, Tensor]]
# (x, sigma, score, score to guide away from) -> guided score, all in the shape of x
GuidanceRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

UNCHANGED = GuidanceOptions()
ALL = slice(None)


def guided_score(
    net: ScoreNetwork,
    labels: Tensor | None = None,
    w: float = 0.0,
    options: GuidanceOptions = UNCHANGED,
    process: Process | None = None,
    weak: ScoreNetwork | None = None,
) -> ScoreFn:
    """Return the guided score, by default score_fn(x, sigma) = (1 + w) net(x, sigma, labels) - w net(x, sigma, null).

    Both terms are evaluated in one batch of twice the size. Where nothing is guided, because w = 0 or sigma is outside
    of the interval, a point costs one evaluation of ``net``. With a momentum, the result is for one call of a sampler.

    Args:
        net: score network, called as net(x, sigma, labels).
        labels: classes of the samples, int64 (B,), or conditions, float32 (B, K); None for a network without both.
        w: guidance weight; 0 is the conditional score itself, and so is any w without ``labels`` and ``weak``.
        options: what else is done; its ``dir`` and ``ckpt`` are not read here.
        process: diffusion process; needed for ``clamp`` and for adaptive projected guidance.
        weak: score network to guide away from, called as ``net`` is, in place of the null label or condition.

    Raises:
        ValueError: if a process is needed and not given.
    """
    if process is None and (options.clamp or options.projects):
        raise ValueError("clamp and adaptive projected guidance need the process")
    score_fn = with_labels(net, labels)
    pair: ScorePair | None = None
    if w and weak is not None:
        pair = against_weak(net, weak, labels)
    elif w and labels is not None:
        pair = against_null(net, labels)
    if pair is not None:
        rule = extrapolation(w)
        if process is not None and options.projects:
            rule = adaptive_projection(process, w, options.eta, options.norm_threshold, options.momentum)
        score_fn = guide(pair, rule) if options.interval is None else guide_within(pair, rule, *options.interval)
    return clamp_to_hull(score_fn, process) if process is not None and options.clamp else score_fn


def with_labels(net: ScoreNetwork, labels: Tensor | None) -> ScoreFn:
    """Return the score of ``net`` with ``labels``."""
    return lambda x, sigma: net(x, sigma, labels)


def against_null(net: ScoreNetwork, labels: Tensor) -> ScorePair:
    """Return the scores of ``net`` with ``labels`` and with the null label or condition, evaluated in one batch."""
    null = null_like(labels)

    def pair(x: Tensor, sigma: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        points, levels = torch.cat([x, x[rows]]), torch.cat([sigma, sigma[rows]])
        scores = net(points, levels, torch.cat([labels, null[rows]]))
        return scores[: len(x)], scores[len(x) :]

    return pair


def against_weak(net: ScoreNetwork, weak: ScoreNetwork, labels: Tensor | None) -> ScorePair:
    """Return the scores of ``net`` and of the network ``weak``, both with ``labels``."""

    def pair(x: Tensor, sigma: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        points = x[rows]
        of_rows = None if labels is None else labels[rows]
        return net(x, sigma, labels), weak(points, sigma[rows], of_rows) if len(points) else points

    return pair


def guide(pair: ScorePair, rule: GuidanceRule) -> ScoreFn:
    """Return the score that ``rule`` makes from the two of ``pair``, at every noise level."""
    return lambda x, sigma: rule(x, sigma, *pair(x, sigma, ALL))


def guide_within(pair: ScorePair, rule: GuidanceRule, low: float, high: float) -> ScoreFn:
    """Return the score of ``guide`` where low <= sigma <= high, elsewhere the first one of ``pair``.

    Guidance in a limited interval is due to Kynkaanniemi et al. (2024). The second score is evaluated for the points
    within only: noise levels of a batch may differ.
    """

    def score_fn(x: Tensor, sigma: Tensor) -> Tensor:
        within = (sigma >= low) & (sigma <= high)
        rows = within.nonzero().flatten()
        score, other = pair(x, sigma, rows)
        if not len(rows):
            return score
        guided = rule(x, sigma, score, score.index_copy(0, rows, other.to(score.dtype)))
        return torch.where(expand(within, score), guided, score)

    return score_fn


def extrapolation(w: float) -> GuidanceRule:
    """Return the rule (1 + w) score - w other."""
    return lambda x, sigma, score, other: torch.lerp(other, score, 1.0 + w)


def adaptive_projection(
    process: Process, w: float, eta: float = 1.0, norm_threshold: float | None = None, momentum: float = 0.0
) -> GuidanceRule:
    """Return the rule of adaptive projected guidance (Sadat et al. 2024, algorithm 1), for one call of a sampler.

    The denoised estimates of the paper are ``hull_coordinate``, in [0, 1] at every noise level. With their difference
    d = estimate of the score - estimate of the other, d' = d + momentum (d' of the call before), and d'' = d' scaled
    to at most ``norm_threshold``, the guided estimate is

        estimate + w (d'' - (1 - eta) (part of d'' parallel to estimate - 1/2)).

    The result is linear in the scores where they are outside of the hull, so that eta = 1, without threshold and
    momentum, is ``extrapolation`` for all scores.

    Args:
        process: diffusion process.
        w: guidance weight; that of the paper, less 1.
        eta: factor of the parallel part; 0 removes it.
        norm_threshold: largest Euclidean norm of d' over the values of a sample; None for no limit.
        momentum: factor of the d' before, in (-1, 1).
    """
    before: Tensor | None = None

    def rule(x: Tensor, sigma: Tensor, score: Tensor, other: Tensor) -> Tensor:
        nonlocal before
        low, high = hull(process, x, sigma)
        estimate = hull_coordinate(score, low, high)
        difference = estimate - hull_coordinate(other, low, high)
        carried = torch.zeros_like(x) if before is None else momentum * before
        difference = difference + carried
        if momentum:
            before = difference
        parallel = projection(difference, estimate - 0.5)
        change = score - other + (high - low).clamp(min=0.0) * (carried - (1.0 - eta) * parallel)
        if norm_threshold is not None:
            norm = torch.linalg.vector_norm(difference.flatten(1), dim=1)
            change = change * expand(norm_threshold / norm.clamp(min=norm_threshold), change)
        return score + w * change

    return rule


def projection(v: Tensor, direction: Tensor) -> Tensor:
    """Return the part of ``v`` (B, ...) that is parallel to ``direction``, of the same shape, for each sample."""
    unit = torch.nn.functional.normalize(direction.flatten(1), dim=1)
    return ((v.flatten(1) * unit).sum(1, keepdim=True) * unit).reshape(v.shape)


def hull(process: Process, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest score that data in [0, 1] can have at ``x``, elementwise.

    They are the scores of the kernel from the two faces, 0 and 1 (docs/method.md).

    Args:
        process: diffusion process.
        x: points of its domain, (B, ...).
        sigma: noise levels, (B,).
    """
    t = process.time(sigma.double())  # and back to sigma: in float32 that would cost digits of the score
    return process.conditional_score(x, torch.zeros_like(x), t), process.conditional_score(x, torch.ones_like(x), t)


def hull_coordinate(score: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the position of ``score`` between ``low`` and ``high``, in [0, 1]; 1/2 where both are equal, on a face.

    For the score of data it is the mean, given x, of an increasing function of x0 with the ends 0 and 1: a denoised
    estimate, for plain VE x + sigma^2 score.
    """
    gap = high - low
    position = (torch.minimum(torch.maximum(score, low), high) - low) / gap
    return torch.where(gap > 0.0, position, 0.5)


def clamp_to_hull(score_fn: ScoreFn, process: Process) -> ScoreFn:
    """Return the score, moved elementwise to the nearest one that data in [0, 1] can have.

    It is static thresholding of the denoised estimate, on the cube; for plain VE, exactly that of ``boundary=clip``.
    """

    def clamped(x: Tensor, sigma: Tensor) -> Tensor:
        low, high = hull(process, x, sigma)
        return torch.minimum(torch.maximum(score_fn(x, sigma), low), high)

    return clamped

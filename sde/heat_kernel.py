r"""Transition density of Brownian motion reflected at 0 and 1 (the heat kernel with Neumann boundary).

Started at x0 and run until its free standard deviation is sigma, each coordinate has the density

    p(x | x0) = sum_k N(x; x0 + 2k, sigma^2) + N(x; -x0 + 2k, sigma^2)             (image sum)
              = 1 + 2 sum_{n>=1} exp(-n^2 pi^2 sigma^2 / 2) cos(n pi x) cos(n pi x0)   (cosine series)

(Lou & Ermon 2023: sum of Gaussians, and Laplacian eigenfunctions). Both are exact; the first converges fast
for small sigma, the second for large. Below ``SWITCH`` the image sum is used, from there on the series, each
with the number of terms in ``TERMS``.

**Image sum without lost digits.** By symmetry take x <= 1/2 (else reflect both points). The images are
+-y_j with y_0, y_1, y_2, ... = x0, 2 - x0, 2 + x0, 4 - x0, ... and a pair contributes

    N(x; y) + N(x; -y) = N(x; y) (1 + e),                    e = exp(-2 x y / sigma^2),
    d/dx of it         = N(x; y) ((1 - e)(y - x) - 2 x e) / sigma^2.

In this form nothing cancels: near the face x = 0, where the forces of the two images are large and
opposite, 1 - e comes from expm1. Weights are relative to the nearest image, in the log domain,

    R_j = exp(-((y_j - x)^2 - (x - x0)^2) / (2 sigma^2)),
    with exponent 2 (m - x0)(m - x) / sigma^2 for y = 2m - x0 and 2 m (m + x0 - x) / sigma^2 for y = 2m + x0,

so that they never under- or overflow together, however many sigma apart the points are. Distances from
the upper face (1 - x, 1 - x0) are taken from the original point and not from its reflection.

**How many terms.** Relative to the density, the first pair left out has R_j at most (worst x, x0 in
[0, 1/2] x [0, 1]): exp(-1 / sigma^2) after 2 pairs, exp(-3 / sigma^2) after 3, exp(-6 / sigma^2) after 4; it changes
sigma * score by at most 2 (5 / sigma) R_j. The series after n terms leaves out at most 2 q^((n+1)^2) / (1 - q),
q = exp(-pi^2 sigma^2 / 2), and (n+1) pi sigma times that in sigma * score, against a density of at least 0.17.
``TERMS`` keeps all of that below 4e-7 in float32 and 4e-15 in float64. docs/method.md has the derivation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from sde import cube
from utils.seeds import BatchGenerator

SWITCH = 0.4  # sigma at which the image sum hands over to the cosine series
# Upper ends of the ranges of sigma for which TERMS says how many terms are needed: pairs of images, then cosines.
BOUNDS = (0.2, SWITCH, 0.75, math.inf)
TERMS = {torch.float32: (2, 3, 4, 2), torch.float64: (3, 4, 6, 3)}
SYNC_FREE_DEVICES = ("cpu",)  # devices on which the values of sigma can be read without waiting
# Elements evaluated at once: on a CPU what its caches hold, on a GPU enough to hide the launch of a kernel.
CPU_CHUNK, GPU_CHUNK = 2**16, 2**22
NORMAL_RANGE, NORMAL_STEP = 8.5, 0.125  # of the trapezoidal rule over a normal number

Form = Callable[..., Tensor]  # of x, x0, sigma and the number of terms


def sample(x0: Tensor, sigma: Tensor | float, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
    """Draw x ~ p(. | x0, sigma): a Gaussian step folded back into the cube.

    Args:
        x0: points in [0, 1], shape (B, ...).
        sigma: free standard deviation, shape (B,) or a number.
        generator: source of the noise, on the device of ``x0``; or one for each of the B points.

    Returns:
        A tensor of the shape of ``x0``, in [0, 1].
    """
    return cube.reflect(x0 + _per_image(sigma, x0) * BatchGenerator(generator).randn_like(x0))


def log_density(x: Tensor, x0: Tensor, sigma: Tensor | float) -> Tensor:
    """Compute the logarithm of p(x | x0, sigma), elementwise (sum over axes 1.. for the density of an image).

    Args:
        x, x0: points in [0, 1], of shapes (B, ...) that broadcast; float32 or float64.
        sigma: free standard deviation, shape (B,) or a number, positive.

    Returns:
        Natural logarithms, in the broadcast shape of ``x`` and ``x0``.
    """
    return _dispatch_by_sigma(_log_density_by_images, _log_density_by_series, x, x0, sigma)


def score(x: Tensor, x0: Tensor, sigma: Tensor | float) -> Tensor:
    """Compute the conditional score d/dx log p(x | x0, sigma), elementwise: the regression target of training.

    The arguments are those of ``log_density``. The result is exact also where the density itself would underflow.
    """
    return _dispatch_by_sigma(_score_by_images, _score_by_series, x, x0, sigma)


def score_towards(x: Tensor, offset: Tensor, sigma: Tensor | float) -> Tensor:
    """Compute the score d/dx log p(x | x0, sigma) for x0 = reflect(x + offset), elementwise, without forming x0 first.

    Offsets far below the rounding of x keep their digits, as those of a denoised estimate at small sigma do. The result
    is differentiable in every argument.

    Args:
        x: points in [0, 1], (B, ...); float32 or float64.
        offset: differences from ``x``, of any size, in its shape.
        sigma: free standard deviation, positive: a number, shape (B,), or one for each element, in the shape of ``x``.
    """
    forms = _score_towards_by_images, _score_towards_by_series
    if isinstance(sigma, Tensor) and sigma.ndim == x.ndim > 1:
        x_flat, offset, sigma = (part.reshape(-1) for part in torch.broadcast_tensors(x, offset, sigma))
        return _dispatch_by_sigma(*forms, x_flat, offset, sigma).reshape(x.shape)
    return _dispatch_by_sigma(*forms, x, offset, sigma)


def kl_to_uniform(x0: Tensor, sigma: float) -> Tensor:
    """Compute E[log p(x | x0, sigma)] for x ~ p(. | x0, sigma), elementwise.

    It is the Kullback-Leibler divergence of the kernel from the uniform law.

    With x = reflect(x0 + sigma z) the logarithm is a smooth function of the normal number z, so that the trapezoidal
    rule in z converges to float64, in which this is computed.

    Args:
        x0: points in [0, 1], of any shape.
        sigma: free standard deviation, positive.

    Returns:
        Nats, in the shape and type of ``x0``.
    """
    values, index = x0.double().unique(return_inverse=True)  # images have few values
    total = torch.zeros_like(values)
    for z in np.arange(-NORMAL_RANGE, NORMAL_RANGE + NORMAL_STEP, NORMAL_STEP):
        weight = NORMAL_STEP * math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        total += weight * log_density(cube.reflect(values + sigma * z), values, sigma)
    return total[index].to(x0.dtype)


def _dispatch_by_sigma(images: Form, series: Form, x: Tensor, x0: Tensor, sigma: Tensor | float) -> Tensor:
    """Evaluate ``images`` where sigma is below ``SWITCH``, else ``series``, with temporaries small beside the batch.

    A CPU evaluates each image in the form and with the terms that it needs, a few at a time. To know which, one would
    have to wait for a GPU, which therefore evaluates both forms; so does a compiled call, in one pass.
    """
    if x.dtype not in TERMS:
        raise TypeError(f"the heat kernel needs float32 or float64, got {x.dtype}: half precision loses the faces")
    sigma = _per_image(sigma, x)
    x, x0, _ = torch.broadcast_tensors(x, x0, sigma)
    if torch.compiler.is_compiling():
        return _evaluate_both_forms(images, series, x, x0, sigma)
    sigma = sigma.expand(len(x), *[1] * (x.ndim - 1))
    work: list[tuple[Callable[..., Tensor], Tensor]]
    if x.device.type in SYNC_FREE_DEVICES:
        bounds = torch.tensor(BOUNDS[:-1], dtype=sigma.dtype)
        kind = torch.bucketize(sigma.detach().reshape(-1).contiguous(), bounds, right=True)
        forms = zip((images, images, series, series), TERMS[x.dtype], strict=True)
        work = [(partial(form, terms=n), (kind == k).nonzero().flatten()) for k, (form, n) in enumerate(forms)]
        numbers = CPU_CHUNK
    else:
        work = [(partial(_evaluate_both_forms, images, series), torch.arange(len(x), device=x.device))]
        numbers = GPU_CHUNK
    out = x.new_empty(x.shape)
    size = max(1, numbers // max(1, x[:1].numel()))
    for form, rows in work:
        for start in range(0, len(rows), size):
            part: slice | Tensor = slice(start, start + size)  # of all rows, as in a sampler, a view and no copy
            if len(rows) < len(x):
                part = rows[part]
            out[part] = form(x[part], x0[part], sigma[part])
    return out


def _evaluate_both_forms(images: Form, series: Form, x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Evaluate both forms for every image, each where it converges, with enough terms for all of that range."""
    _, pairs, cosines, _ = TERMS[x.dtype]
    by_images, by_series = (
        images(x, x0, sigma.clamp(max=SWITCH), pairs),
        series(x, x0, sigma.clamp(min=SWITCH), cosines),
    )
    return torch.where(sigma < SWITCH, by_images, by_series)


def _log_density_by_images(x: Tensor, x0: Tensor, sigma: Tensor, terms: int) -> Tensor:
    total: Any = -1.0  # the nearest image itself counts 1; log1p takes it
    for weight, e, _, _ in _image_pairs(*_distances(x, x0), sigma, terms):
        total = total + weight * (1.0 + e)
    nearest = -0.5 * ((x - x0) / sigma).square() - torch.log(sigma * math.sqrt(2.0 * math.pi))
    return nearest + torch.log1p(total)


def _log_density_by_series(x: Tensor, x0: Tensor, sigma: Tensor, terms: int) -> Tensor:
    return torch.log(_cosine_series(x, x0, sigma, terms)[0])


def _score_by_images(x: Tensor, x0: Tensor, sigma: Tensor, terms: int) -> Tensor:
    return _inward(x) * _force(*_distances(x, x0), sigma, terms)


def _score_by_series(x: Tensor, x0: Tensor, sigma: Tensor, terms: int) -> Tensor:
    density, slope = _cosine_series(x, x0, sigma, terms)
    return slope / density


def _score_towards_by_images(x: Tensor, offset: Tensor, sigma: Tensor, terms: int) -> Tensor:
    near, far = _faces(x)
    step = _inward(x) * offset
    near0, far0 = cube.reflect(near + step), cube.reflect(far - step)
    step = torch.where(near0 == near + step, step, near0 - near)
    return _inward(x) * _force(near, far, near0, far0, step, sigma, terms)


def _score_towards_by_series(x: Tensor, offset: Tensor, sigma: Tensor, terms: int) -> Tensor:
    return _score_by_series(x, x + offset, sigma, terms)


def _force(near: Tensor, far: Tensor, near0: Tensor, far0: Tensor, step: Tensor, sigma: Tensor, terms: int) -> Tensor:
    """Compute the score in the coordinate of the nearer face, from the distances that ``_distances`` returns."""
    force: Any = 0.0
    total: Any = 0.0
    for weight, e, one_minus_e, distance in _image_pairs(near, far, near0, far0, step, sigma, terms):
        force = force + weight * (one_minus_e * distance - 2.0 * near * e)
        total = total + weight * (1.0 + e)
    return force / (total * sigma.square())


def _inward(x: Tensor) -> Tensor:
    """Return 1 where the face 0 is nearer to ``x``, else -1: the sign of a step away from the nearer face."""
    return torch.where(x > 0.5, -1.0, 1.0).to(x.dtype)


def _faces(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances of ``x`` from the nearer and the farther face."""
    # Not torch.minimum, whose gradient at x = 1/2 is the mean of both.
    upper, x_comp = x > 0.5, 1.0 - x
    return torch.where(upper, x_comp, x), torch.where(upper, x, x_comp)


def _distances(x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the distances of x and of x0 from the face that is nearer to x and from the other, and x0 - x inwards."""
    near, far = _faces(x)
    upper, x0_comp = x > 0.5, 1.0 - x0
    near0, far0 = torch.where(upper, x0_comp, x0), torch.where(upper, x0, x0_comp)
    return near, far, near0, far0, torch.where(upper, x - x0, x0 - x)  # from the points as given


def _image_pairs(
    near: Tensor, far: Tensor, near0: Tensor, far0: Tensor, step: Tensor, sigma: Tensor, pairs: int
) -> Iterator[tuple[Tensor | float, ...]]:
    """Yield (R_j, e, 1 - e, y_j - x) of the module's docstring for each pair +-y_j, with x folded to [0, 1/2].

    The distances are those of ``_distances``.
    """
    rate = 2.0 / sigma.square()
    weight: Tensor | float
    for j in range(pairs):
        m = (j + 1) // 2
        if j % 2:  # y = 2m - x0
            y, distance = 2 * (m - 1) + 1 + far0, 2 * (m - 1) + far0 + far
            weight = torch.exp(-rate * (m - 1 + far0) * (m - 1 + far))
        else:  # y = 2m + x0
            y, distance = 2 * m + near0, 2 * m + step
            weight = torch.exp(-rate * m * (m + step)) if m else 1.0
        one_minus_e = -torch.expm1(-rate * near * y)
        yield weight, 1.0 - one_minus_e, one_minus_e, distance


def _cosine_series(x: Tensor, x0: Tensor, sigma: Tensor, cosines: int) -> tuple[Tensor, Tensor]:
    """Compute the density and its derivative in x from ``cosines`` terms of the series."""
    angle, angle0 = math.pi * x, math.pi * x0
    cos, sin, cos0 = torch.cos(angle), torch.sin(angle), torch.cos(angle0)
    log_q = -0.5 * (math.pi * sigma).square()
    # cos(n a) and sin(n a) by the three-term recurrence, two neighbours at a time
    last: tuple[Any, Any, Any] = (1.0, 0.0, 1.0)
    cos_n, sin_n, cos0_n = cos, sin, cos0
    density: Any = 1.0
    slope: Any = 0.0
    for n in range(1, cosines + 1):
        amplitude = 2.0 * torch.exp(n * n * log_q) * cos0_n
        density = density + amplitude * cos_n
        slope = slope - n * math.pi * amplitude * sin_n
        (a, b, c), last = last, (cos_n, sin_n, cos0_n)
        cos_n, sin_n, cos0_n = 2.0 * cos * cos_n - a, 2.0 * cos * sin_n - b, 2.0 * cos0 * cos0_n - c
    return density, slope


def _per_image(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Shape ``sigma``, of shape (B,) or a number, to broadcast against ``x`` of shape (B, ...)."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma

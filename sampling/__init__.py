"""Sampling from a score: samplers, guidance, images. A sampler is given score_fn(x, sigma), never a network."""

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from models.parametrization import Parametrization
from sampling.auto import AUTO, NumEvaluations, resolve_auto
from sampling.base import Sampler, Samples
from sampling.boundary import BOUNDED, UNBOUNDED, WithThreshold, check_boundary, threshold_denoised
from sampling.denoising import WithDenoiser, posterior_mean
from sampling.faces import FaceWidth, WithVanishingScore, sampling_face_width, vanish_at_faces
from sampling.few_steps import Heun, Multistep, UniPC
from sampling.guidance import guided_score
from sampling.ode import NETWORK_TOLERANCE, ProbabilityFlow
from sampling.pc import PredictorCorrector
from sde import Process
from utils.errors import InputError
from utils.options import Option, check_section, one_of, options_of, plain

__all__ = [
    "Heun",
    "Multistep",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Sampler",
    "Samples",
    "UniPC",
    "create_sampler",
    "guided_score",
    "threshold_denoised",
    "vanish_at_faces",
]

METHODS: dict[str, type] = {
    "pc": PredictorCorrector,
    "ode": ProbabilityFlow,
    "heun": Heun,
    "multistep": Multistep,
    "unipc": UniPC,
}
DENOISERS = ("none", "mean", "network")
THRESHOLD_OPTIONS = options_of(WithThreshold, leave_out=("sampler", "boundary"))


def sampling_options() -> dict[str, Option]:
    """Return the options of the section ``sampling``: those of all samplers, and those that wrap a sampler."""
    options = {"method": one_of((*METHODS, AUTO)), "nfe": Option(NumEvaluations | None, required=False)}
    for sampler in METHODS.values():
        options |= options_of(sampler, leave_out=("process",))
    boundaries = one_of(dict.fromkeys((*BOUNDED, *UNBOUNDED))).annotation | None
    choices = {"denoiser": one_of(DENOISERS).annotation, "boundary": boundaries, "face_width": FaceWidth}
    return options | THRESHOLD_OPTIONS | {key: Option(choice, required=False) for key, choice in choices.items()}


def create_sampler(
    cfg: Mapping[str, Any],
    process: Process,
    denoise: Callable[[Tensor], Tensor] | None = None,
    parametrization: Parametrization | None = None,
) -> Sampler:
    """Build the sampler that a ``sampling`` configuration names (configs/sampling/default.yaml explains its keys).

    Args:
        cfg: ``method`` and options, those of other methods included.
        process: diffusion process.
        denoise: function that ``denoiser=network`` applies to the samples.
        parametrization: parametrization of the network whose score the sampler is for; None for a score that is exact
            at the faces. ``face_width=auto`` and tolerances that are null depend on it.

    Raises:
        InputError: for a value that does not exist, is out of range, or does not fit the process.
    """
    cfg = plain(cfg) if isinstance(cfg, DictConfig) else cfg
    check_section(cfg, sampling_options(), "sampling")
    cfg = resolve_auto(cfg)
    method, denoiser, boundary = cfg["method"], cfg.get("denoiser", "none"), cfg.get("boundary")
    check_boundary(boundary, process)
    own = options_of(METHODS[method], leave_out=("process",))
    given = {key: value for key, value in cfg.items() if key in own}
    if parametrization is not None:
        given |= {key: NETWORK_TOLERANCE for key in ("rtol", "atol") if key in own and given.get(key) is None}
    if not process.bounded:
        given.pop("boundary", None)
    if denoiser == "network":
        if denoise is None:
            raise InputError("sampling.denoiser=network: say which in denoiser_path, a key of run_vis.py")
        given.pop("denoiser", None)
        sampler: Sampler = WithDenoiser(METHODS[method](process, **given), process, lambda _, x: denoise(x), nfe=0)
    else:
        sampler = METHODS[method](process, **given)
    if denoiser == "mean" and method != "pc":  # whose last step can leave out its noise
        sigma = process.sigma_min
        sampler = WithDenoiser(sampler, process, lambda score_fn, x: posterior_mean(score_fn, x, sigma), nfe=1)
    if not process.bounded and boundary is not None:
        chosen = {key: value for key, value in cfg.items() if key in THRESHOLD_OPTIONS}
        sampler = WithThreshold(sampler, boundary, **chosen)
    width = sampling_face_width(cfg, process, parametrization)
    return WithVanishingScore(sampler, width) if width else sampler

"""A scheduler of diffusers for the diffusion reflected at the faces of the cube."""

import itertools
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Generator, Tensor

from sde.cube import reflect
from sde.multistep import RHO, karras_levels, multistep_step


class ReflectedMultistepScheduler(SchedulerMixin, ConfigMixin):
    """DPM-Solver++(2M), or its stochastic form, for the reflected variance-exploding process.

    Samples lie in the cube [0, 1]^D of the process, not in [-1, 1] as in most pipelines of diffusers: noise levels are
    in units of its side, and scores are derivatives along it. Images y in [-1, 1] are (1 + y) / 2 here.

    Timesteps are noise levels sigma, which is what the network takes, and need not be among ``timesteps`` in
    ``add_noise``. The output of the network is the score, d/dx log p_sigma(x).

    The prior is uniform: ``prior_sample`` draws from it. Start noise of other pipelines, normal numbers times
    ``init_noise_sigma``, becomes uniform as soon as it is folded into the cube, to within 1e-33; ``scale_model_input``
    and ``step`` fold what they are given, which leaves points of the cube as they are.

    Args:
        sigma_min: noise level of the samples.
        sigma_start: noise level from which on the process has reached its prior, and where sampling starts.
        num_inference_steps: number of steps of ``set_timesteps`` without an argument.
        rho: spacing of the noise levels, which are equidistant in sigma^(1 / rho).
        eta: noise of the steps in units of that of the reversed process: 0 for the probability flow, 1 for the reversed
            process.
    """

    order = 1
    init_noise_sigma = 4.0  # the density of the folded noise is 1 to within 2 exp(-pi^2 4^2 / 2)

    @register_to_config
    def __init__(
        self,
        *,  # diffusers takes what is given by position for a default value, and forgets it in from_config
        sigma_min: float = 0.01,
        sigma_start: float = 1.5,
        num_inference_steps: int = 20,
        rho: float = RHO,
        eta: float = 0.0,
    ) -> None:
        if not 0 < sigma_min < sigma_start:
            raise ValueError(f"sigma_min={sigma_min}, sigma_start={sigma_start}: need 0 < sigma_min < sigma_start")
        if not (rho >= 1 and eta >= 0):
            raise ValueError(f"rho={rho}, eta={eta}: need rho >= 1 and eta >= 0")
        self.set_timesteps()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose the noise levels, and forget the steps made so far.

        Args:
            num_inference_steps: number of steps; None for that of ``sigmas``, or of the configuration.
            device: device of ``timesteps``.
            sigmas: noise levels that the steps start from, falling; the last step ends at sigma_min.

        Raises:
            ValueError: for levels that do not fall to sigma_min, or of another number than ``num_inference_steps``.
        """
        bottom = self.config.sigma_min
        if sigmas is None:
            steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
            if steps < 1:
                raise ValueError(f"num_inference_steps={steps}: need at least 1")
            levels = karras_levels(self.config.sigma_start, bottom, steps, self.config.rho)
        else:
            levels = [*map(float, sigmas), bottom]
            if len(levels) < 2 or any(a <= b for a, b in itertools.pairwise(levels)):
                raise ValueError(f"sigmas={list(sigmas)}: need noise levels that fall, all above sigma_min={bottom}")
            if num_inference_steps not in (None, len(sigmas)):
                raise ValueError(f"num_inference_steps={num_inference_steps}: sigmas has {len(sigmas)} levels")
        self.sigmas = torch.tensor(levels, dtype=torch.float64)  # on the CPU: they are read as numbers
        self.timesteps = self.sigmas[:-1].float().to(device)
        self.num_inference_steps = len(levels) - 1
        self._step_index: int | None = None
        self._before: tuple[Tensor, float] | None = None

    @property
    def step_index(self) -> int | None:
        """Return the number of the next step; None before the first one."""
        return self._step_index

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """Return the place of a noise level in ``timesteps``; raise ValueError if it is not there."""
        distance = (self.sigmas[:-1] / float(timestep) - 1.0).abs()
        index = int(distance.argmin())
        if not distance[index] < 1e-3:  # half precision of timesteps
            raise ValueError(f"timestep={float(timestep)} is not one of scheduler.timesteps, which are noise levels")
        return index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Fold ``sample`` into the cube, where the network is defined."""
        return reflect(sample)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Carry ``sample`` from the noise level ``timestep`` to the next one.

        Args:
            model_output: score at ``sample``, of its shape.
            timestep: one of ``timesteps``; after the first step the one that follows, unchecked.
            sample: points, (B, ...).
            generator: one generator, or one for each sample; used if eta is not 0.
            return_dict: whether to return a ``SchedulerOutput``.

        Returns:
            Points of the cube at the next noise level.

        Raises:
            ValueError: for another timestep, or after the last step.
        """
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep)
        if self._step_index >= self.num_inference_steps:
            raise ValueError("the last step is done: call set_timesteps before the next samples")
        sigma, following = self.sigmas[self._step_index : self._step_index + 2].tolist()
        x = reflect(sample)
        target = x + sigma**2 * model_output
        noise = self._draw(torch.randn, x.shape, generator, x.device, x.dtype) if self.config.eta else None
        y = reflect(multistep_step(x, target, sigma, following, self._before, self.config.eta, noise))
        self._before = target, sigma
        self._step_index += 1
        return SchedulerOutput(prev_sample=y) if return_dict else (y,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Draw from the process: ``original_samples`` plus noise, folded into the cube.

        Args:
            original_samples: points of the cube, (B, ...).
            noise: standard normal numbers, (B, ...).
            timesteps: noise levels, (B,).
        """
        sigma = timesteps.to(original_samples).reshape(-1, *[1] * (original_samples.ndim - 1))
        return reflect(original_samples + sigma * noise)

    def prior_sample(
        self,
        shape: Sequence[int],
        generator: Generator | list[Generator] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw uniform start noise of ``shape`` (B, ...), from one generator or from one for each sample."""
        return self._draw(torch.rand, shape, generator, device, dtype)

    @staticmethod
    def _draw(function, shape, generator, device, dtype):  # type: ignore[no-untyped-def]
        """Draw random numbers on the device of the generator, and move them to ``device``."""
        if not isinstance(generator, list):
            where = device if generator is None else generator.device
            return function(tuple(shape), generator=generator, device=where, dtype=dtype).to(device)
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for {shape[0]} samples")
        rows = [function(tuple(shape[1:]), generator=g, device=g.device, dtype=dtype) for g in generator]
        return torch.stack([row.to(device) for row in rows])

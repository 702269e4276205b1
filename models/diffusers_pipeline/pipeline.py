"""A pipeline of diffusers that draws images from a score network in the cube."""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Generator, Tensor


class ReflectedDiffusionPipeline(DiffusionPipeline):
    """Draws images by a ``ScoreNetwork`` and a ``ReflectedMultistepScheduler``.

    Args:
        unet: score network.
        scheduler: scheduler of the reflected process.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet, scheduler) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size: number of images; None for that of ``class_labels``, ``latents`` or ``generator``, or 1.
            class_labels: class of all images, or one for each, -1 for none; needed for a network with classes.
            guidance_scale: factor of the difference between the scores with and without the class; 1 for the score with
                it. run_vis.py calls guidance_scale - 1 ``w``.
            num_inference_steps, sigmas: steps, see ``ReflectedMultistepScheduler.set_timesteps``.
            generator: one generator, or one for each image, so that an image does not depend on the others.
            latents: start noise in [0, 1], (B, C, H, W); None to draw it.
            output_type: ``pil``, ``np`` for arrays (B, H, W, C) in [0, 1], or ``pt`` for tensors (B, C, H, W).
            return_dict: whether to return an ``ImagePipelineOutput``.

        Raises:
            ValueError: for classes that the network does not have, guidance without classes, or numbers that differ.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type={output_type}: choose one of pil, np, pt")
        device = self._execution_device
        labels = self._labels(class_labels, guidance_scale)
        counts = {
            "batch_size": batch_size,
            "class_labels": None if labels is None or not labels.ndim else len(labels),
            "generator": len(generator) if isinstance(generator, list) else None,
            "latents": None if latents is None else len(latents),
        }
        given = {name: count for name, count in counts.items() if count is not None}
        if len(set(given.values())) > 1:
            raise ValueError(f"different numbers of images: {', '.join(f'{n} of {name}' for name, n in given.items())}")
        n = next(iter(given.values()), 1)
        if labels is not None:
            labels = labels.expand(n).to(device)

        shape = (n, *self.unet.data_shape)
        if latents is None:
            x = self.scheduler.prior_sample(shape, generator, device)
        elif latents.shape == shape:
            x = latents.to(device, torch.float32)
        else:
            raise ValueError(f"latents has shape {tuple(latents.shape)}, these images have {shape}")
        self.scheduler.set_timesteps(num_inference_steps, device, sigmas)
        for t in self.progress_bar(self.scheduler.timesteps):
            x = self.scheduler.scale_model_input(x, t)
            score = self._score(x, t, labels, guidance_scale)
            x = self.scheduler.step(score, t, x, generator).prev_sample
        self.maybe_free_model_hooks()

        images = x.cpu()
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, class_labels: int | Sequence[int] | Tensor | None, guidance_scale: float) -> Tensor | None:
        """Return the classes as int64, () or (B,); None for a network without classes."""
        count = self.unet.num_classes
        if not count:
            if class_labels is not None or guidance_scale != 1.0:
                raise ValueError("this network has no classes: leave out class_labels and guidance_scale")
            return None
        if class_labels is None:
            raise ValueError(f"class_labels is missing: this network has classes 0 to {count - 1}, and -1 for none")
        labels = torch.as_tensor(class_labels)
        if labels.is_floating_point() or labels.ndim > 1 or not ((labels >= -1) & (labels < count)).all():
            raise ValueError(f"class_labels={class_labels}: this network has classes 0 to {count - 1}, and -1 for none")
        return labels.long()

    def _score(self, x: Tensor, sigma: Tensor, labels: Tensor | None, guidance_scale: float) -> Tensor:
        """Compute the score, guided away from that without a class."""
        if labels is None or guidance_scale == 1.0:
            return self.unet(x, sigma, labels).sample
        both = torch.cat([labels, torch.full_like(labels, -1)])
        score, null = self.unet(torch.cat([x, x]), sigma, both).sample.chunk(2)
        return torch.lerp(null, score, guidance_scale)

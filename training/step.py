"""One update: what it is made of, as a function of (seed, step), and the gradient of a process's share of it."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from datasets import Loader
from losses.score_matching import perturb, score_error
from models import NULL_LABEL, ScoreModel, compiled
from sde import ReflectedVE, heat_kernel
from training.checkpoint import TrainState
from utils.distributed import Distributed
from utils.seeds import Stream, seed_torch


@dataclass(frozen=True)
class NoisyBatch:
    """Images with all that is random about a step, whoever computes it.

    Attributes:
        x0: images in [0, 1], (B, C, H, W).
        labels: int64 (B,).
        t: times, (B,).
        x: the images at these times, (B, C, H, W).
    """

    x0: Tensor
    labels: Tensor
    t: Tensor
    x: Tensor

    def __len__(self) -> int:
        return len(self.x0)

    def part(self, rows: slice) -> "NoisyBatch":
        """Some of the images."""
        return NoisyBatch(self.x0[rows], self.labels[rows], self.t[rows], self.x[rows])


class Objective:
    """The loss that a configuration asks for.

    Every process draws the whole batch and computes its share: so the numbers do not depend on how many there are.
    """

    def __init__(self, cfg: DictConfig, sde: ReflectedVE) -> None:
        self.seed, self.sde = cfg.seed, sde
        self.kernel_score = torch.no_grad()(compiled(heat_kernel.score)) if cfg.compile else heat_kernel.score
        self.drop_label = cfg.training.drop_label
        self.accumulate = cfg.training.grad_accum_steps
        self.weighting = {
            "likelihood_weighting": cfg.training.likelihood_weighting,
            "reduce_mean": cfg.training.reduce_mean,
        }

    def sample_batch(self, batches: Loader, step: int) -> NoisyBatch:
        """Batch ``step`` to train on: flips, dropped labels, times and noise are functions of (seed, step)."""
        seed_torch(self.seed, Stream.TRAIN, step)
        x0, labels = batches(step)
        labels = drop_labels(labels, self.drop_label)
        return NoisyBatch(x0, labels, *perturb(self.sde, x0))

    def sample_held_out_batch(self, batches: Loader) -> NoisyBatch:
        """The images of an evaluation: the same, at the same times, with the same noise, at each."""
        seed_torch(self.seed, Stream.EVAL)
        x0, labels = batches(0)
        return NoisyBatch(x0, labels, *perturb(self.sde, x0))

    def losses(self, net: nn.Module, draw: NoisyBatch, num_classes: int) -> Tensor:
        """The loss of each image, (B,)."""
        labels = draw.labels if num_classes else None
        return score_error(net, self.sde, draw.x0, draw.t, draw.x, labels, self.kernel_score, **self.weighting)

    def evaluate(self, net: ScoreModel, draw: NoisyBatch, distributed: Distributed) -> Tensor:
        """The mean loss over a draw that the processes share, with dropout as ``net`` has it; a number."""
        share = draw.part(distributed.local_slice(len(draw)))
        own = self.losses(net, share, net.num_classes).sum() if len(share) else torch.zeros((), device=draw.t.device)
        return distributed.all_reduce_sum(own) / len(draw)

    def accumulate_gradients(
        self,
        net: nn.Module,
        num_classes: int,
        draw: NoisyBatch,
        step: int,
        distributed: Distributed,
        scaler: torch.amp.GradScaler,
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of the mean loss over ``draw``, of all processes, to that of ``net``.

        The share of a process is computed in ``training.grad_accum_steps`` parts, whose gradients add up. Dropout is a
        function of (seed, step, rank, part).

        Args:
            net: what ``Distributed.data_parallel`` made of the network.
            scaler: of the loss, in half precision.

        Returns:
            The losses of this process's share and its noise levels, both (share,).
        """
        share = draw.part(distributed.local_slice(len(draw)))
        n, parts, losses = len(share), self.accumulate, []
        for k in range(parts):
            part = share.part(slice(n * k // parts, n * (k + 1) // parts))
            seed_torch(self.seed, Stream.DROPOUT, step, distributed.rank, k)
            with nullcontext() if k == parts - 1 else distributed.no_sync(net):
                of_part = self.losses(net, part, num_classes)
                scaler.scale(of_part.sum() * (distributed.world_size / len(draw))).backward()
            losses.append(of_part.detach())
        return torch.cat(losses), self.sde.sigma(share.t)


def train_step(
    objective: Objective,
    net: nn.Module,
    state: TrainState,
    draw: NoisyBatch,
    distributed: Distributed,
    lr: float,
    grad_clip: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Move the weights and their average down the gradient of the mean loss over ``draw``.

    Nothing here waits for a GPU.

    Args:
        net: what ``Distributed.data_parallel`` made of ``state.model``.
        state: which is one step further then.
        lr: learning rate.
        grad_clip: largest norm of the gradient; negative: no limit.

    Returns:
        The losses of this process's images and their noise levels, both (share,), and the norm of the gradient of all.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    losses, sigma = objective.accumulate_gradients(
        net.train(), state.model.num_classes, draw, state.step, distributed, state.scaler
    )
    state.scaler.unscale_(state.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(state.trainable, grad_clip if grad_clip >= 0 else math.inf)
    if state.scaler.is_enabled():  # it skips a step that overflowed and lowers its scale: no failure of the run
        grad_norm = torch.nan_to_num(grad_norm, nan=0.0, posinf=0.0)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.ema.update(state.model)
    state.step += 1
    return losses, sigma, grad_norm


def drop_labels(labels: Tensor, rate: float) -> Tensor:
    """Replace each label by the null label with probability ``rate``, image by image (classifier-free guidance)."""
    dropped = torch.rand(labels.shape, device=labels.device) < rate
    return torch.where(dropped, NULL_LABEL, labels)

"""Find noise levels for samplers of few evaluations: python -m sampling.tune RUN [--nfe 4 5 6 8 10] [options]

Networks, above all those that were trained briefly, err differently at each noise level, so that the same levels suit
one and not another. For each number of evaluations this searches the sampler (``multistep`` or ``unipc``) and levels
whose samples have the smallest energy distance to the training data: first a grid of starts and spacings, then each
level by itself. The result is compared with the default on fresh noise, and kept if it is not worse. It is written to
RUN/tuned/sampling.json, which ``sampling.method=auto`` reads. The held-out data stay unseen.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from datasets import ImageDataset, load_configured
from datasets.options import MAX_IMAGE_SIZE
from models import load_pretrained
from models.export import checkpoint_number
from models.io.run_files import find_checkpoint, named_checkpoint
from models.score_model import ScoreModel
from sampling.auto import DEFAULT, FewSteps, Tuned, create_few_steps, read_tuned, tuned_path
from sampling.draw import draw_samples
from sampling.folding import karras_sigmas
from sde import Process, create_process
from utils.devices import choose_device
from utils.ema_options import CheckpointNumber
from utils.energy_distance import combine, distances_within, mean_distances
from utils.errors import ArgumentParser, InputError, UserError, printable, replacing
from utils.hub_names import hub_text, on_hub
from utils.locks import exclusive

NFE = (4, 5, 6, 8, 10)
STARTS = (1.0, 0.8, 0.65, 0.5)  # first levels, in units of the level where the process reaches its prior
RHOS = (1.5, 2.5, 4.0, 7.0)  # spacings, see karras_sigmas
# Methods, each with its eta.
SAMPLERS: tuple[tuple[FewSteps, float], ...] = (("multistep", 0.0), ("multistep", 0.5), ("unipc", 0.0))
SHORTLIST, SWEEPS = 6, 2
MOST = 10_000  # training samples that are compared with
FIRST = 10**9  # number of the first sample: noise of samples that are drawn and measured later
MOVE = 0.3  # of the way to the neighbouring level, in log sigma
Levels = tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A sampler of few evaluations, see ``Tuned``."""

    method: FewSteps
    eta: float
    sigmas: Levels


class Search:
    """The energy distance of samples of a network to data, as a function of the sampler.

    Args:
        net: score network.
        process: its diffusion process.
        images: data to compare with, at most ``MOST`` of them; the samples have their classes or conditions.
        seed: seed of the noise of the samples; the noise of a sample does not depend on the sampler.
        batch_size: number of samples that are drawn at once.
        device: device of the network.

    Attributes:
        on_step: function called after each computation, for a progress bar; None at first.
    """

    def __init__(
        self,
        net: ScoreModel,
        process: Process,
        images: ImageDataset,
        *,
        seed: int = 0,
        batch_size: int = 250,
        device: torch.device | str = "cpu",
    ) -> None:
        self.net, self.process, self.seed, self.batch_size, self.device = net, process, seed, batch_size, device
        self.on_step: Callable[[], object] | None = None
        if len(images) < 2:
            raise InputError(f"{len(images)} training samples: need at least 2 to compare with")
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:MOST]
        self._real = images.normalize(images.data[rows]).flatten(1).double()
        self._labels = images.labels[rows] if net.takes_labels else None
        self._within = distances_within(self._real, self._real).mean().item()

    def distance(self, candidate: Candidate, numbers: range) -> tuple[float, float]:
        """Compute the energy distance of samples with these numbers above ``FIRST``, and its standard error."""
        sampler = create_few_steps(self.process, candidate.method, candidate.sigmas, candidate.eta)
        drawn = []
        for start in range(numbers.start, numbers.stop, self.batch_size):
            batch = range(start, min(start + self.batch_size, numbers.stop))
            labels = None
            if self._labels is not None:
                labels = self._labels[[number % len(self._labels) for number in batch]].to(self.device)
            shape, device = self.net.data_shape, self.device
            unseen = range(FIRST + batch.start, FIRST + batch.stop)
            samples = draw_samples(self.net, self.process, sampler, shape, unseen, self.seed, labels, device=device)
            drawn.append(samples.samples.flatten(1).double().cpu())
        x = torch.cat(drawn)
        if self.on_step is not None:
            self.on_step()
        if not x.isfinite().all():
            return math.inf, math.inf
        return combine(mean_distances(x, self._real).numpy(), distances_within(x, x).numpy(), self._within)

    def grid(self, steps: int, number: int) -> Candidate:
        """Return the best of all samplers, starts and spacings: by a quarter of ``number`` samples, then by all."""
        top, starts = self.process.prior_sigma, STARTS if self.process.bounded else (1.0,)
        candidates = [
            Candidate(method, eta, tuple(karras_sigmas(self.process, steps, start * top, rho)[:-1]))
            for (method, eta), start, rho in itertools.product(SAMPLERS, starts, RHOS)
            if start * top > self.process.sigma_min
        ]
        for size, keep in ((max(2, number // 4), SHORTLIST), (number, 1)):
            candidates = sorted(candidates, key=lambda candidate: self.distance(candidate, range(size))[0])[:keep]
        return candidates[0]

    def refine(self, best: Candidate, number: int) -> Candidate:
        """Move each level towards one of its neighbours where that brings ``number`` samples nearer to the data.

        The first level of a process without bounds, at which its noise starts, stays.
        """
        distance = self.distance(best, range(number))[0]
        for _ in range(SWEEPS):
            for i in range(0 if self.process.bounded else 1, len(best.sigmas)):
                for moved in self._moves(best, i):
                    if (found := self.distance(moved, range(number))[0]) < distance:
                        best, distance = moved, found
                        break
        return best

    def _moves(self, candidate: Candidate, i: int) -> list[Candidate]:
        """Return the candidate with level ``i`` moved up and down."""
        levels = [self.process.sigma_max, *candidate.sigmas, self.process.sigma_min]
        moved = []
        for neighbour in (levels[i], levels[i + 2]):
            sigma = levels[i + 1] ** (1.0 - MOVE) * neighbour**MOVE
            if levels[i] > sigma > levels[i + 2]:
                sigmas = (*candidate.sigmas[:i], sigma, *candidate.sigmas[i + 1 :])
                moved.append(replace(candidate, sigmas=sigmas))
        return moved


def tune(search: Search, steps: int, number: int, checkpoint: str) -> Tuned:
    """Find noise levels for a number of steps, and compare them with the default on samples not used in the search.

    Args:
        search: energy distance as a function of the sampler.
        steps: number of steps and evaluations.
        number: number of samples of each comparison.
        checkpoint: name of the file of the network, for the record.

    Returns:
        The better of the levels found and the default.
    """
    default = Candidate(DEFAULT["method"], DEFAULT["eta"], tuple(karras_sigmas(search.process, steps)[:-1]))
    found = search.refine(search.grid(steps, number), number)
    fresh = range(number, 3 * number)  # numbers of samples
    distances = {candidate: search.distance(candidate, fresh) for candidate in (found, default)}
    best = min(distances, key=lambda candidate: distances[candidate][0])
    return Tuned(
        best.method,
        list(best.sigmas),
        best.eta,
        checkpoint,
        number,
        search.seed,
        energy_distance=distances[best],
        default=distances[default],
    )


def most_steps(steps: int) -> int:
    """Return the largest number of energy distances that ``tune`` computes."""
    return len(SAMPLERS) * len(STARTS) * len(RHOS) + SHORTLIST + 1 + SWEEPS * 2 * steps + 2


def tune_run(
    run_dir: Path,
    nfe: list[int],
    *,
    ckpt: CheckpointNumber = -1,
    number: int = 500,
    seed: int = 0,
    batch_size: int = 250,
    device: str = "auto",
    dataroot: str = "datasets",
    root: str | None = None,
    held_out: str | None = None,
    max_image_size: int = MAX_IMAGE_SIZE,
) -> None:
    """Tune a run for each number of evaluations in ``nfe``, and write RUN/tuned/sampling.json after each.

    Numbers that the file has from the same checkpoint, ``number`` and ``seed`` are left out.

    Args:
        run_dir: directory of the run, or one of its checkpoints.
        nfe: numbers of evaluations.
        ckpt: number of the checkpoint; -1 for the highest, ``best`` for that with the lowest held-out loss.
        number: number of samples of each comparison.
        seed, batch_size, device: see ``Search``.
        dataroot, root, held_out: places of the data, see ``load_configured``.
        max_image_size: see ``load_pretrained``.

    Raises:
        InputError: naming the argument or file at fault.
    """
    if on_hub(run_dir):
        reason = "the levels are stored in the run: download it to a folder by hf download"
        raise InputError(f"{hub_text(run_dir)} is on the Hub, and {reason}")
    run_dir, ckpt = named_checkpoint(run_dir, ckpt)
    if run_dir.is_file():
        raise InputError(f"{run_dir} is a file: give the run, in which the levels are stored")
    where = choose_device(device)
    checkpoint = find_checkpoint(run_dir, ckpt, "--ckpt").name
    net, cfg = load_pretrained(run_dir, ckpt, where, max_image_size=max_image_size)
    process = create_process(cfg.sde)
    images = load_configured(cfg.data, True, dataroot, root, held_out)
    images.check_domain(process)
    path = tuned_path(run_dir)
    with exclusive(path.parent, "another sampling.tune writes there"):
        try:
            known = read_tuned(run_dir, process)
        except InputError:  # a damaged file is written again
            known = {}
        search = Search(net, process, images, seed=seed, batch_size=batch_size, device=where)
        for steps in nfe:
            there = known.get(steps)
            if there is not None and (there.checkpoint, there.samples, there.seed) == (checkpoint, number, seed):
                continue
            with tqdm(total=most_steps(steps), desc=f"{steps} evaluations", disable=None) as bar:
                search.on_step = bar.update
                known[steps] = tune(search, steps, number, checkpoint)
            entries = {str(n): asdict(known[n]) for n in sorted(known)}
            with replacing(path) as temporary:
                temporary.write_text(json.dumps({"tuned": entries}, indent=1) + "\n")
            print(summary(steps, known[steps]), flush=True)


def summary(steps: int, found: Tuned) -> str:
    """Return a line about the result for a number of evaluations."""
    levels = ", ".join(f"{sigma:.3g}" for sigma in found.sigmas)
    (value, error), (default, default_error) = found.energy_distance, found.default
    return (
        f"{steps} evaluations: energy distance {value:.4f} +- {error:.4f}, default {default:.4f} +- "
        f"{default_error:.4f}; {found.method}, eta {found.eta:g}, sigmas {levels}"
    )


def main() -> None:
    """Parse the command line and tune a run."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="directory of the run")
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE), help="numbers of evaluations")
    parser.add_argument(
        "--ckpt",
        type=checkpoint_number,
        default=-1,
        help="number of the checkpoint, or best; -1: the highest",
    )
    parser.add_argument("--samples", type=int, default=500, help="samples of each comparison")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise of the samples")
    parser.add_argument("--batch-size", type=int, default=250, help="samples that are drawn at once")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dataroot", default="datasets", help="folder of the data sets")
    parser.add_argument("--root", help="folder of the images of data=folder, or file of data=array")
    parser.add_argument("--held-out", help="file of the held-out rows of data=array, if the run has one")
    parser.add_argument("--max-image-size", type=int, default=MAX_IMAGE_SIZE, help="larger images are refused")
    options = parser.parse_args()
    fewest = {"nfe": 2, "samples": 10, "batch_size": 1, "seed": 0}
    for name, least in fewest.items():
        value = min(options.nfe) if name == "nfe" else getattr(options, name)
        if value < least:
            parser.error(f"--{name.replace('_', '-')} {value}: need at least {least}")
    try:
        tune_run(
            options.run_dir,
            options.nfe,
            ckpt=options.ckpt,
            number=options.samples,
            seed=options.seed,
            batch_size=options.batch_size,
            device=options.device,
            dataroot=options.dataroot,
            root=options.root,
            held_out=options.held_out,
            max_image_size=options.max_image_size,
        )
    except (UserError, OSError) as error:
        sys.exit(printable(str(error)))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what is missing", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

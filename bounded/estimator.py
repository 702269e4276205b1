"""A density of bounded data and samples from it, in the manner of scikit-learn's ``KernelDensity``."""

import copy
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from bounded.training import train_run
from datasets.units import Composition, Units, create_units
from evaluation.likelihood import log_likelihood
from models import load_pretrained
from models.io.run_files import find_checkpoint
from sampling import create_sampler
from sampling.draw import draw_imputed, draw_samples
from sde import Process, create_process
from utils.devices import choose_device
from utils.errors import InputError
from utils.options import plain
from utils.seeds import Stream, image_generators

FLOATS = (np.float64, np.float32)  # types of rows that stay as they are
ROWS = 1000  # rows that are drawn or measured at once
EXACT_UP_TO = 64  # columns; of more the divergence is estimated
PROBES = 8  # sign vectors of the estimate
TOLERANCE = 1e-4  # of the flow, see evaluation/bpd.py


class BoundedDiffusion(DensityMixin, BaseEstimator):
    """Reflected diffusion model of rows whose columns lie between bounds, and may have atoms there.

    A score network is trained by constrained denoising score matching (Lou & Ermon 2023) in the unit cube, or with
    ``simplex`` for the sorted process on the probability simplex. Samples never leave the bounds, and a column of which
    at least 1 % lies on a bound is drawn with that atom. It is the training and sampling of ``run_train.py
    experiment=array`` with rows in memory; a saved model is the directory of such a run.

    Args:
        low: lower bound of all columns, or one for each; "open" for none. None: that of the data, see the guide
            docs/bounded.md.
        high: upper bounds, as ``low``; of each column at most one side is open. With ``simplex`` the sum of each row.
        simplex: whether the rows are compositions: parts, at least 0, of a constant sum (1 unless ``high`` says so).
        n_iter: number of steps of training.
        batch_size: number of rows in a step.
        width: number of features of each layer of the network.
        num_blocks: number of residual blocks of the network.
        learning_rate: learning rate after 100 steps of warmup.
        sigma_min: noise that remains at the end, in units of the range of a column: the resolution of the density.
        validation_fraction: share of the rows that is not trained on, and by whose loss the weights of one of ten
            checkpoints are chosen.
        steps: number of steps of the sampler, the predictor ``ancestral``.
        device: ``auto``, ``cpu`` or ``cuda``.
        verbose: whether to show a progress bar while training.
        random_state: seed, or a ``RandomState``, of training and of the samples; see scikit-learn's glossary.

    Attributes:
        n_features_in_: number of columns.
        net_: trained network, score = net_(x, sigma) in the cube.
        cfg_: configuration of the run.
        process_: diffusion process.
        seed_: seed of the run.
    """

    def __init__(
        self,
        low: Any = None,
        high: Any = None,
        simplex: bool = False,
        *,
        n_iter: int = 2000,
        batch_size: int = 256,
        width: int = 256,
        num_blocks: int = 3,
        learning_rate: float = 1e-3,
        sigma_min: float = 1e-3,
        validation_fraction: float = 0.1,
        steps: int = 100,
        device: str = "auto",
        verbose: bool = True,
        random_state: Any = None,
    ) -> None:
        self.low = low
        self.high = high
        self.simplex = simplex
        self.n_iter = n_iter
        self.batch_size = batch_size
        self.width = width
        self.num_blocks = num_blocks
        self.learning_rate = learning_rate
        self.sigma_min = sigma_min
        self.validation_fraction = validation_fraction
        self.steps = steps
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train a network on the rows.

        Args:
            X: rows, (N, D) with at least two rows, finite and between the bounds.
            y: ignored.

        Raises:
            ValueError: for rows that cannot be used, naming row and column, or a parameter out of range. There is no
                model then, also if there was one before.
        """
        if hasattr(self, "net_"):
            del self.net_
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)  # noqa: N806
        random_state = check_random_state(self.random_state)
        seed = int(random_state.randint(2**31 - 1))
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction}: need a number between 0 and 1")
        if self.n_iter == 0:
            raise ValueError("n_iter=0: need at least 1")
        order = random_state.permutation(len(X))
        held_out, rows = np.split(order, [min(max(1, round(self.validation_fraction * len(X))), len(X) - 1)])
        with tempfile.TemporaryDirectory() as folder:
            try:
                run, best = train_run(X[rows], X[held_out], self._options(seed), Path(folder), self.verbose)
            except InputError as error:
                text = str(error).replace(f"{folder}/rows.npy", "X").replace(f"{folder}/held_out.npy", "X")
                text = text.split("; data.outside=")[0]  # which is not among the parameters
                raise ValueError(text.replace("data.", "").replace("model.", "")) from None
            self._read(run, best)
        self.seed_ = seed
        return self

    def sample(self, n_samples: int = 1, random_state: Any = None, given: Any = None) -> np.ndarray:
        """Draw rows, or fill in the unknown values of given ones.

        Values are filled in by sequential Monte Carlo (``sampling.imputation.impute``), from their distribution given
        the known ones as far as the network is exact.

        Args:
            n_samples: number of rows; with ``given``, number of completions of each row, which follow one another.
            random_state: seed or ``RandomState``; None: that of the fit. A row depends on the seed and its number only.
            given: rows, (M, D), with NaN for unknown values; None to draw all values.

        Returns:
            Rows in the units of the data, float64 (n_samples, D), or (M n_samples, D) with ``given``.

        Raises:
            ValueError: for known values out of bounds, or ``given`` with ``simplex``.
        """
        check_is_fitted(self, "net_")
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples}: need at least 1")
        seed = self.seed_ if random_state is None else int(check_random_state(random_state).randint(2**31 - 1))
        if given is None:
            cfg = {"method": "pc", "predictor": "ancestral", "steps": self.steps}
            sampler = create_sampler(cfg, self.process_, parametrization=self.net_.parametrization)
            shape, device = self.net_.data_shape, self._device
            parts = [
                draw_samples(self.net_, self.process_, sampler, shape, numbers, seed, device=device).samples
                for numbers in _parts(n_samples)
            ]
        else:
            u, known = self._given(given)
            u, known = u.repeat_interleave(n_samples, 0), known.repeat_interleave(n_samples, 0)
            parts = [draw_imputed(self.net_, self.process_, u, known, range(len(u)), seed).samples]
        drawn = self._units.from_cube(self._units.snap(torch.cat(parts), self.process_.sigma_min)).cpu().numpy()
        if given is not None:  # exactly as given, without the rounding of the cube
            values = np.repeat(np.asarray(given, dtype=np.float64), n_samples, 0)
            drawn = np.where(np.isnan(values), drawn, values)
        return drawn

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute the log density of rows, by the probability flow at ``sigma_min``.

        Args:
            X: rows, (N, D), finite; with ``simplex`` their density is that of the first D - 1 parts.

        Returns:
            Natural logarithms in the units of the data, float64 (N,); minus infinity out of bounds.
        """
        check_is_fitted(self, "net_")
        X = validate_data(self, X, dtype=FLOATS, reset=False)  # noqa: N806
        x = torch.tensor(X)
        inside = self._units.contains(x)
        result = np.full(len(X), -np.inf)
        u = self._units.to_cube(x[inside], torch.float64).to(self._device)
        net = copy.deepcopy(self.net_).double()  # in float32 the steps of a row depend on the rounding of its batch
        divergence = "exact" if u.shape[1] <= EXACT_UP_TO else "hutchinson"
        parts = [
            log_likelihood(
                net,
                self.process_,
                u[numbers.start : numbers.stop],
                divergence,
                image_generators(self.seed_, numbers, self._device, Stream.PROBE),
                num_probes=PROBES,
                rtol=TOLERANCE,
                atol=TOLERANCE,
            ).log_prob
            for numbers in _parts(len(u))
        ]
        if parts:
            result[inside.numpy()] = (torch.cat(parts) + self._units.log_jacobian(u)).cpu().numpy()
        return result

    def score(self, X: Any, y: Any = None) -> float:  # noqa: N803
        """Compute the total log density of rows, in nats; ``y`` is ignored."""
        return float(self.score_samples(X).sum())

    def save(self, path: str | Path) -> None:
        """Write the model to a new directory: a run that ``load`` reads, and run_vis.py and run_eval.py.

        Raises:
            ValueError: if there is something at ``path`` already.
        """
        check_is_fitted(self, "net_")
        path = Path(path)
        if path.exists():
            raise ValueError(f"{path} exists: choose another path")
        for name, content in self.run_files_.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """Read a model from a directory that ``save`` or run_train.py with ``data=array`` wrote.

        The directory may be from somebody else: nothing in it is executed.

        Args:
            path: directory of the run.
            device: ``auto``, ``cpu`` or ``cuda``.

        Raises:
            ValueError: if it is not such a run, naming the file.
        """
        model = cls(device=device)
        model._read(Path(path), -1)
        data, training = plain(model.cfg_.data), model.cfg_.get("training") or {}
        model.low, model.high, model.simplex = data["low"], data["high"], data.get("simplex") is not None
        model.sigma_min, model.steps = model.process_.sigma_min, model.process_.num_scales
        network = plain(model.cfg_.model)
        model.n_iter, model.batch_size = training.get("n_iters", 0), training.get("batch_size", 0)
        model.width, model.num_blocks = network.get("width", 0), network.get("num_blocks", 0)
        model.learning_rate = (model.cfg_.get("optim") or {}).get("lr", model.learning_rate)
        model.seed_ = int(model.cfg_.get("seed", 0))
        return model

    @property
    def _units(self) -> Units:
        units = create_units(self.cfg_.data)
        assert units is not None, "checked by _read"
        return units

    @property
    def _device(self) -> torch.device:
        return next(self.net_.parameters()).device

    def _options(self, seed: int) -> dict[str, Any]:
        """Return the values of the keys of run_train.py that the parameters stand for."""
        options = {
            "data.low": _plain_bound(self.low),
            "data.high": _plain_bound(self.high),
            "data.simplex": "ordered" if self.simplex else None,
            "data.levels": 0,
            "sde.name": "reflected_simplex" if self.simplex else "reflected_ve",
            "sde.sigma_min": float(self.sigma_min),
            "sde.num_scales": self.steps,
            "model.width": self.width,
            "model.num_blocks": self.num_blocks,
            "training.n_iters": self.n_iter,
            "training.batch_size": self.batch_size,
            "optim.lr": float(self.learning_rate),
            "device": self.device,
            "seed": seed,
        }
        return {key: value.item() if isinstance(value, np.generic) else value for key, value in options.items()}

    def _read(self, run: Path, ckpt: int) -> None:
        """Read network and configuration of a run, and keep what ``save`` writes."""
        device = choose_device(self.device)
        self.net_, self.cfg_ = load_pretrained(run, ckpt, device)
        if self.cfg_.data.get("low") is None or len(self.net_.data_shape) != 1 or self.net_.takes_labels:
            raise ValueError(f"{run} is not the run of a network for rows without classes (data=array)")
        self.process_: Process = create_process(self.cfg_.sde)
        self.n_features_in_ = self.net_.data_shape[0] + (self.cfg_.data.get("simplex") is not None)
        checkpoint = find_checkpoint(run, ckpt)
        names = {".hydra/config.yaml": run / ".hydra/config.yaml", f"checkpoints/{checkpoint.name}": checkpoint}
        self.run_files_ = {name: path.read_bytes() for name, path in names.items()}

    def _given(self, given: Any) -> tuple[Tensor, Tensor]:
        """Return points of the cube with the known values of ``given``, and where they are known."""
        if isinstance(self._units, Composition):
            raise ValueError("given: the parts of a composition depend on each other, and cannot be filled in")
        given = check_array(given, dtype=FLOATS, ensure_all_finite="allow-nan")
        if given.shape[1] != self.n_features_in_:
            raise ValueError(f"given has {given.shape[1]} columns, the model {self.n_features_in_}")
        known, x = torch.tensor(~np.isnan(given)), torch.tensor(given)
        inside = self._units.from_cube(torch.zeros_like(x)).to(x.dtype).where(~known, x)
        if not (ok := self._units.contains(inside)).all():
            row = int((~ok).nonzero()[0])
            raise ValueError(f"given: row {row} has a value out of bounds")
        return self._units.to_cube(inside).to(self._device), known.to(self._device)


def _parts(count: int) -> list[range]:
    """Return the numbers 0 .. count - 1 in ranges of at most ``ROWS``."""
    return [range(start, min(start + ROWS, count)) for start in range(0, count, ROWS)]


def _plain_bound(bound: Any) -> Any:
    """Return a bound as a number, a list or None, for the configuration."""
    if bound is None or isinstance(bound, str):
        return bound
    if np.ndim(bound) > 1:
        raise ValueError(f"a bound of shape {np.shape(bound)}: need a number, or one for each column")
    return (
        [str(value) if isinstance(value, str) else float(value) for value in bound] if np.ndim(bound) else float(bound)
    )

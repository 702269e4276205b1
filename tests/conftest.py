"""Fixtures: small configurations, and the entry scripts run as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from cli.entry_point import set_up

set_up()  # the resolver that the configurations use

# As in a terminal, for the scripts that tests interrupt: what a shell starts in the background ignores interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent

# A network of a few thousand parameters on 8x8 digits, two steps, three sampler steps.
TINY = [
    "data=digits",
    "model=adm",
    "model.model_channels=8",
    "model.channel_mult=[1]",
    "model.num_blocks=1",
    "model.attn_resolutions=[]",
    "sampling.steps=3",
    "training.n_iters=2",
    "training.batch_size=8",
    "training.log_freq=1",
    "training.eval_freq=2",
    "eval.batch_size=20",
    "device=cpu",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this project's tests."""
    parser.addoption("--kills", type=int, default=1, help="how often the test of exact resuming kills a run")
    parser.addoption("--fuzz", type=int, default=10, help="how many damaged files and configurations are tried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first, so that no worker is left with one at the end."""
    seconds: Counter[Path] = Counter()
    marked = {(item.path, item.originalname): item.get_closest_marker("slow") for item in items}
    for (path, _), marker in marked.items():
        seconds[path] += marker.args[0] if marker else 0
    items.sort(key=lambda item: -seconds[item.path])


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """Compose the configuration of a command line, without Hydra's own section."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(name, overrides=list(overrides))
    OmegaConf.resolve(cfg)
    return cfg


def tiny_config(*overrides: str) -> DictConfig:
    """Compose the configuration of a run of ``TINY`` with ``overrides``."""
    cfg = composed(*TINY, *overrides)
    with open_dict(cfg):
        del cfg.resume
    return cfg


def environment() -> dict[str, str]:
    """Return the environment variables for a script that is run as by a user."""
    return {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}


def read(path: Path) -> dict[str, Any]:
    """Read the contents of a checkpoint."""
    return torch.load(path, weights_only=True)


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Read the entries of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def wait_for_steps(run_dir: Path, steps: int, process: subprocess.Popen) -> None:
    """Wait until the run has more than so many entries in its ``metrics.jsonl``, or has ended."""
    path = run_dir / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and len(path.read_text().splitlines()) > steps):
        time.sleep(0.01)


def leaves(tree: Any) -> list[Any]:
    """Yield all tensors and numbers of a nested structure, in order."""
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in leaves(tree[key])]
    return [leaf for item in tree for leaf in leaves(item)] if isinstance(tree, list | tuple) else [tree]


def assert_same(first: Any, second: Any) -> None:
    """Assert that two checkpoints have the same numbers, bit for bit."""
    first, second = leaves(first), leaves(second)
    assert len(first) == len(second) > 10
    differing = sum(
        not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) for a, b in zip(first, second, strict=True)
    )
    assert differing == 0


class Scripts:
    """Entry scripts, each run in a process forked from one that has imported everything (tests/forked.py)."""

    def __init__(self, folder: Path) -> None:
        self.said = [folder / "stdout", folder / "stderr"]
        self.server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/forked.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**environment(), "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip

    def __call__(
        self, cwd: Path, name: str, *args: str, timeout: int = 300, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python NAME ARGS`` in ``cwd``, with ``changes`` to the code; the time limit is for hangs only."""
        request = {"script": str(ROOT / name), "args": args, "cwd": str(cwd), "env": environment(), "limit": timeout}
        self.server.stdin.write(json.dumps({**request, **changes, "said": list(map(str, self.said))}) + "\n")
        self.server.stdin.flush()
        code = json.loads(self.server.stdout.readline())
        return subprocess.CompletedProcess(
            [name, *args], code, *(path.read_text(errors="replace") for path in self.said)
        )


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripts]:
    """Run an entry script: scripts(folder, "run_train.py", *overrides)."""
    started = Scripts(tmp_path_factory.mktemp("said"))
    yield started
    started.server.stdin.close()
    started.server.wait()


@pytest.fixture
def script(tmp_path: Path, scripts: Scripts) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run an entry script in ``tmp_path``: script("run_train.py", *overrides)."""
    return partial(scripts, tmp_path)


@pytest.fixture
def fresh_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run an entry script in a new Python process, for tests of its start."""

    def run(name: str, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / name), *args]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)

    return run

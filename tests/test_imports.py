"""Imports of the library: no side effects, and only of packages below in the order of ``PACKAGES``."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

# From the top down: a package may import those after it. An entry script may import every package.
PACKAGES = ("cli", "bounded", "training", "evaluation", "sampling", "losses", "models", "datasets", "sde", "utils")
ENTRY_SCRIPTS = ("run_train", "run_vis", "run_eval")
OUTSIDE = ("tests", "examples", "benchmarks")

# Printed before and after the imports of modules: what they may not change.
STATE = """
import logging, os, signal, sys, warnings
import hydra, omegaconf, sklearn.linear_model, torch, torchvision, torch_fidelity, wandb  # what these do is not ours
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel  # imported on demand
from omegaconf.basecontainer import BaseContainer

def state():
    signals = {s.name: signal.getsignal(s) for s in signal.valid_signals() if isinstance(s, signal.Signals)}
    root = logging.getLogger()
    return {
        "signal handlers": signals,
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "environment": dict(os.environ),
        "logging": (list(root.handlers), root.level, logging.raiseExceptions, logging.root.manager.disable),
        "warnings": list(warnings.filters),
        "resolvers": set(BaseContainer._resolvers),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.is_grad_enabled()),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook),
    }
"""
IMPORT = """
import importlib
for name in sys.argv[1:]:
    before = state()
    importlib.import_module(name)
    for part, value in state().items():
        if value != before[part]:
            print(f"{name} changes {part}: {before[part]} -> {value}")
"""


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the name of the module in a file of the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import, also of those inside functions and of those for type checkers only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def upward(package: str, source: str) -> list[tuple[int, str]]:
    """List line and module of the imports of a module in ``package`` that it may not have."""
    allowed = PACKAGES[PACKAGES.index(package) :]
    own = {*PACKAGES, *ENTRY_SCRIPTS, *OUTSIDE}
    return [(line, name) for line, name in imports(source) if (top := name.split(".")[0]) in own and top not in allowed]


def state_changes(*names: str, setup: str = "") -> str:
    """Import modules in a new process one after the other; return a line for each change of its state."""
    command = [sys.executable, "-c", STATE + setup + IMPORT, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow(15)
def test_importing_a_library_module_has_no_side_effect():
    names = [name_of(path) for package in PACKAGES if package != "cli" for path in sources(package)]
    assert len(names) > 80 and {"evaluation.generate", "training.loop", "models.io.pretrained"} < set(names)
    assert state_changes(*names) == ""


def test_the_test_of_side_effects_sees_them(tmp_path):
    changes = {
        "handler": ("signal handlers", "import signal; signal.signal(signal.SIGUSR2, signal.SIG_IGN)"),
        "variable": ("environment", "import os; os.environ['OF_A_MODULE'] = '1'"),
        "level": ("logging", "import logging; logging.getLogger().setLevel(logging.DEBUG)"),
        "warning": ("warnings", "import warnings; warnings.filterwarnings('ignore', 'of a module')"),
        "resolver": ("resolvers", "from omegaconf import OmegaConf; OmegaConf.register_new_resolver('own', str)"),
    }
    for name, (_, statement) in changes.items():
        (tmp_path / f"has_{name}.py").write_text(statement)
    said = state_changes(*(f"has_{name}" for name in changes), setup=f"sys.path.insert(0, {str(tmp_path)!r})\n")
    for line, (name, (part, _)) in zip(said.splitlines(), changes.items(), strict=True):
        assert line.startswith(f"has_{name} changes {part}:")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_those_below(package):
    found = {name_of(path): upward(package, path.read_text()) for path in sources(package)}
    assert found
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_scripts_in_a_package_import_the_standard_library():
    """A script finds the modules beside it before those of the standard library."""
    assert [path.name for path in sources("datasets") if path.stem in sys.stdlib_module_names] == []


def test_every_package_has_its_place_in_the_order():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders - set(OUTSIDE) == set(PACKAGES)


def test_the_test_of_the_order_sees_every_kind_of_import():
    source = (
        "from typing import TYPE_CHECKING\nimport utils.seeds\nif TYPE_CHECKING:\n    from training.loop import train\n"
        "def later():\n    import run_vis\n    from sampling import pc\n    from cli import launch as other\n"
    )
    assert upward("sampling", source) == [(4, "training.loop.train"), (6, "run_vis"), (8, "cli.launch")]

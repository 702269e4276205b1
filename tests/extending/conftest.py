"""What the tests of this folder share: the scripts with the additions of a test module in them.

A module has ``ENTRIES``, its lines in registries, (registry, name, thing), and ``CONFIGS``, its lines in configs/:
(file, line after which they stand or None for a new file, text). The scripts run with both, on a copy of configs/.
"""

import json
import shutil

import numpy as np
import pytest

from cli import options
from tests.conftest import ROOT, assert_same, metrics, read

SMALL = ["training.batch_size=8", "training.log_freq=1", "training.eval_freq=2", "training.snapshot_freq=2"]
SMALL += ["eval.batch_size=20", "device=cpu", "sampling.steps=3"]
SMALL += ["optim.lr=1e-2", "optim.warmup=0"]
DIGITS = ["data=digits", *SMALL]
ADM = ["model=adm", "model.model_channels=8", "model.channel_mult=[1]", "model.num_blocks=1"]
ADM += ["model.attn_resolutions=[]"]


class Extended:
    """The scripts of a copy of this project to which the test module has added something.

    Attributes:
        folder: current directory of the scripts.
    """

    def __init__(self, scripts, folder, module):
        self.scripts, self.folder, self.module = scripts, folder, module.__name__
        self.configs = folder / "configs"
        shutil.copytree(ROOT / "configs", self.configs)
        for name, after, text in module.CONFIGS:
            path = self.configs / name
            assert path.exists() == (after is not None)
            lines = path.read_text().splitlines() if after is not None else []
            position = next(i for i, line in enumerate(lines, 1) if line.startswith(after)) if after is not None else 0
            path.write_text("\n".join([*lines[:position], *text.splitlines(), *lines[position:]]) + "\n")

    def run(self, name, *args):
        """Run a script and return its result."""
        return self.scripts(self.folder, name, *args, extension=self.module, configs=str(self.configs))

    def succeed(self, name, *args):
        """Run a script that must succeed."""
        result = self.run(name, *args)
        assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr

    def refuse(self, name, *args):
        """Run a script that must fail with one line, and return the line."""
        result = self.run(name, *args)
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
        return result.stderr.strip()

    def train_and_resume(self, *overrides):
        """Train in RUN for two steps and then for four, and show that it is as if it had never stopped."""
        chosen = [*overrides, "hydra.run.dir=RUN", "training.n_iters=2"]
        self.succeed("run_train.py", *chosen)
        self.succeed("run_train.py", "resume=RUN", "training.n_iters=4")
        self.succeed("run_train.py", *overrides, "hydra.run.dir=WHOLE", "training.n_iters=4")
        run, whole = self.folder / "RUN", self.folder / "WHOLE"
        assert [entry["step"] for entry in metrics(run)] == [1, 2, 3, 4]
        assert_same(*(read(path / "checkpoints-meta/checkpoint.pth") for path in (run, whole)))
        first, second = (np.load(run / f"samples/iter_{step}/sample_0.npy") for step in (2, 4))
        assert first.shape == second.shape and not np.array_equal(first, second)
        assert np.array_equal(second, np.load(whole / "samples/iter_4/sample_0.npy"))
        return run

    def draw(self, *overrides, load_dir="RUN", batches=1):
        """Draw six samples with run_vis.py, in so many ``batches``, and return them."""
        folder = self.folder / f"vis{len(list(self.folder.glob('vis*')))}"
        arguments = ["sampling.method=multistep", "sampling.steps=2", "eval.batch_size=6", "device=cpu"]
        self.succeed("run_vis.py", f"load_dir={load_dir}", *arguments, *overrides, f"hydra.run.dir={folder}")
        return np.concatenate([np.load(folder / f"images/samples_{r}.npz")["samples"] for r in range(batches)])

    def measure(self, *overrides, images=6):
        """Measure some samples with run_eval.py by the flow and the bound, in bits or nats; return results.json."""
        arguments = ["metrics=[bpd,elbo]", f"eval.images={images}", "metrics.bpd.rtol=1e-2", "metrics.bpd.atol=1e-2"]
        arguments += ["metrics.elbo.num_times=4", "device=cpu", "load_dir=RUN", "hydra.run.dir=measured"]
        self.succeed("run_eval.py", *arguments, *overrides)
        results = json.loads((self.folder / "measured/results.json").read_text())["metrics"]
        for name in ("bpd", "elbo"):
            with np.load(self.folder / f"measured/{name}.npz") as arrays:
                values = arrays[results[name]["unit"].split()[0].rstrip(",")]
            assert values.shape == (images,) and results[name]["value"] == pytest.approx(values.mean())
        return results

    def edit(self, old, new, run="RUN"):
        """Change the configuration that a run has saved; return the text before."""
        path = self.folder / run / ".hydra/config.yaml"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        return text

    def check_options(self, monkeypatch, script, *lines):
        """Compare the files of configs/ with the annotations as test_options.py does; --help shows the ``lines``."""
        monkeypatch.setattr(options, "CONFIGS", self.configs)
        for cached in (options.lines_of, options.option_keys):
            cached.cache_clear()
        for path in options.files_of(script):
            found, known = options.lines_of(path), options.annotated_options(path)
            assert found.keys() == known.keys() and all(len(line.help) > 3 for line in found.values()), path
        said = self.run(f"run_{script}.py", "--help").stdout
        for line in lines:
            assert line in said


@pytest.fixture
def registered(request, monkeypatch):
    """The entries of the test module in this process."""
    for registry, name, added in request.module.ENTRIES:
        monkeypatch.setitem(registry, name, added)


@pytest.fixture
def extended(request, registered, scripts, tmp_path):
    """The scripts with the additions of the test module."""
    yield Extended(scripts, tmp_path, request.module)
    for cached in (options.lines_of, options.option_keys):
        cached.cache_clear()

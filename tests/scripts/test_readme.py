"""Run every command of README.md and docs/usage.md, with a small network, few steps and random images."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import kernel, recipes, step
from cli.options import option_keys
from tests.conftest import ROOT, TINY, composed, environment, tiny_config
from tests.scripts.test_recipes import NARROW
from training.loop import train
from utils.distributed import Distributed

README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "docs/usage.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGES, re.MULTILINE | re.DOTALL)
ALL_PAGES = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
LINES = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
MAKEFILE = (ROOT / "Makefile").read_text()
SPANS = re.findall(r"`([^`\n]+)`", PAGES)
COMMANDS = dict.fromkeys(
    text for text in LINES + SPANS if re.match(r"(python|sh|tensorboard|eval|make|pip|\.) \S", text)
)

# Options that shorten a training run to seconds
SHORT = ["training.n_iters=2", "training.batch_size=4", "training.log_freq=1", "training.eval_freq=2"]
SHORT += ["training.snapshot_freq=2", "eval.batch_size=4", "device=cpu"]
FEW_STEPS = ["sampling.method=multistep", "sampling.steps=2"]
# Commands that another test runs; an empty string: commands that the tests themselves need.
ELSEWHERE = {
    "python datasets/download_cifar10.py": "datasets/test_cache.py::test_cifar10",
    "sh datasets/download_imagenet32.sh": "datasets/test_cache.py::test_imagenet32",
    "python datasets/compile_imagenet64.py /path/to/imagenet": "datasets/test_imagenet64.py::test_",
    "sh download_pretrained.sh": "models/test_download.py::test_the_script_fetches_all",
    "python -m examples.density_2d": "sampling/test_sampling.py::test_the_example_in_two_dimensions",
    "make demo": "scripts/test_digits.py::test_the_demo_recipe",
    "make test": "",
    "python -m venv .venv": "",
    ". .venv/bin/activate": "",
    "pip install -r requirements.txt": "",
}
SLURM = "hydra/launcher=slurm"  # scripts/test_slurm.py, on a cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make a folder with a run on digits (RUN, runs/demo), with 1,000 classes, with a condition; tables, images."""
    folder = tmp_path_factory.mktemp("readme")
    cpu = Distributed(torch.device("cpu"))
    train(tiny_config("training.snapshot_sampling=false", "training.ema_snapshot_freq=1"), folder / "RUN", cpu)
    shutil.copytree(folder / "RUN", folder / "runs/demo")
    classes = ["data=fake", "data.image_size=8", "data.classes=true", "data.num_classes=1000"]
    many = [option for option in TINY if option != "data=digits"] + ["training.snapshot_sampling=false"]
    cfg = composed(*classes, *many)
    del cfg.resume
    train(cfg, folder / "weights/imagenet64", cpu)
    told = [option for option in many if not option.startswith(("model", "data"))] + ["model=mlp", *NARROW["mlp"]]
    values = np.random.default_rng(0).uniform(0, 1, (40, 3))
    write_csv(folder / "FILE.csv", 100 * values)
    write_csv(folder / "X.csv", values)
    write_csv(folder / "PARTS.csv", values / values.sum(1, keepdims=True))
    table = ["data=array", f"data.root={folder / 'X.csv'}", "data.columns=[a]", "data.cond=[b,c]"]
    cfg = composed(*table, *told, "data.shape=[1]", "data.low=0", "data.high=1", "data.scale=1", "data.cond_size=2")
    del cfg.resume
    train(cfg, folder / "COND", cpu)
    (folder / "PATH").mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(folder / f"PATH/{i:02d}.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / "MASK.png")
    np.savez(folder / "FILE.npz", samples=np.zeros((20, 8, 8, 1), np.uint8), labels=np.arange(20) % 10)
    return folder


def write_csv(path, rows):
    """Write the columns a, b, c."""
    np.savetxt(path, rows, fmt="%.17g", delimiter=",", header="a,b,c", comments="")


@pytest.fixture(scope="module")
def run(place, scripts):
    """Return a function that runs a script in ``place``."""
    return partial(scripts, place, timeout=120)


def network_of(arguments):
    """Return the name of the network that a command trains."""
    chosen = [a for a in arguments if a.startswith(("experiment=", "model=", "data=", "hydra/"))]
    return composed(*[a for a in chosen if "launcher" not in a]).model.name


def shortened(script, arguments):
    """Return the arguments of a command with further ones that shorten it to seconds."""
    arguments = [re.sub("^ngpus=[48]$", "ngpus=1", argument) for argument in arguments]
    if script == "run_train.py":
        arguments = [re.sub("^training.n_images=.*", "training.n_images=8", argument) for argument in arguments]
        # runs/demo is a run of the fixture, with another network
        arguments = [re.sub("^hydra.run.dir=runs/demo$", "hydra.run.dir=runs/new", argument) for argument in arguments]
        if any(a.startswith(("resume=", "--help", "-sc")) or a == "experiment=debug/tiny" for a in arguments):
            return [*arguments, *(["training.n_iters=3"] * any(a.startswith("resume=") for a in arguments))]
        extra = [*NARROW[network_of(arguments)], *SHORT, *FEW_STEPS]
        stored = {"experiment=digits", "data=digits", "data=folder", "experiment=array"}
        extra += [] if stored & set(arguments) else ["data.dataset=fake", "data.image_size=8"]
        if "init_from=RUN" in arguments:  # which has the network of TINY
            extra += [option for option in TINY if option.startswith("model.")]
        if "training.n_iters=0" in arguments:
            extra.remove("training.n_iters=2")
        return [*arguments, *extra]
    extra = ["eval.batch_size=2", "device=cpu"]
    if script == "run_vis.py":
        if "label=388" in arguments:  # of 1,000 classes
            arguments = ["load_dir=weights/imagenet64", *arguments[1:]]
        if any(argument.startswith("cond=") for argument in arguments):
            arguments = ["load_dir=COND", *arguments[1:]]
        flow = "sampling.method=ode" in arguments
        few = [] if "sampling.method=auto" in arguments else ["sampling.steps=2"]
        extra += ["eval.rounds=1"] + (["sampling.rtol=0.1", "sampling.atol=0.1"] if flow else few)
    else:
        extra += ["eval.images=4", "metrics.num_images=8", *FEW_STEPS]
        extra += ["metrics.elbo.num_times=2"] if "elbo" in " ".join(arguments) or len(arguments) == 1 else []
        extra += ["metrics.bpd.rtol=0.1", "metrics.bpd.atol=0.1"] if len(arguments) == 1 else []
    return [*arguments, *extra]


def expected_files(script, arguments):
    """Return the names of files that a command must have written."""
    if script == "run_train.py":
        if "--help" in arguments or "-sc" in arguments:
            return set()
        return {"data.png"} if "training.n_iters=0" in arguments else {"metrics.jsonl", "checkpoint.pth", "loss.png"}
    if script == "run_eval.py":
        return {"results.json"}
    names = {"samples_0.png", "samples_0.npz"}
    names |= {"trajectory.png", "trajectory.gif"} if "sampling.trajectory=10" in arguments else set()
    return names | ({"000000.png"} if "eval.save_images=True" in arguments else set())


@pytest.mark.slow(90)
@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"python run_\w+\.py", c) and SLURM not in c])
def test_command_of_an_entry_point(command, place, run):
    _, script, *arguments = shlex.split(command)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    result = run(script, *shortened(script, arguments))
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    made = {path.name for path in place.rglob("*") if before.get(path) != path.stat().st_mtime_ns}
    assert expected_files(script, arguments) <= made, sorted(made)


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"python -m (models|evaluation|sampling)\.", c)])
def test_command_of_a_module(command, place):
    for made in ("OUT", "OUT.safetensors"):
        shutil.rmtree(place / made, ignore_errors=True)
    path = {"PYTHONPATH": str(ROOT)}
    fewer = ["--samples", "10"] if "sampling.tune" in command else []
    result = subprocess.run(
        [sys.executable, *shlex.split(command)[1:], *fewer],
        cwd=place, env={**environment(), **path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not fewer or (place / "RUN/tuned/sampling.json").exists()
    assert not command.startswith("python -m models.export") or (place / shlex.split(command)[4]).exists()


@pytest.mark.parametrize("command", re.findall(r"`(python -m pytest tests/\S+\.py[^`\n]*)`", ALL_PAGES))
def test_command_of_pytest_selects_tests(command):
    path, *options = shlex.split(command)[3:]
    names = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(), re.MULTILINE)
    chosen = options[options.index("-k") + 1].split(" or ") if "-k" in options else ["test_"]
    assert all(any(word in name for name in names) for word in chosen)


def test_all_output_is_below_root(place, run):
    assert run("run_train.py", "experiment=debug/tiny", "root=elsewhere").returncode == 0
    (run_dir,) = (place / "elsewhere/runs/digits").glob("*/*")
    assert (
        run("run_vis.py", f"load_dir={run_dir}", "root=elsewhere", "sampling.steps=2", "eval.batch_size=2").returncode
        == 0
    )
    assert len(list((place / "elsewhere/vis").glob("*/*/images/samples_0.png"))) == 1


def test_tensorboard_reads_a_run(place):
    assert "tensorboard --logdir RUN" in COMMANDS
    command = [os.path.join(os.path.dirname(sys.executable), "tensorboard"), "--logdir", "RUN", "--inspect"]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "eval_loss" in result.stdout


def test_shell_completion(tmp_path):
    (line,) = (command for command in COMMANDS if command.startswith("eval "))
    interpreter = os.path.dirname(sys.executable)
    asks = {"COMP_LINE": "python run_train.py model=", "PATH": f"{interpreter}:{os.environ['PATH']}"}
    command = f"{line}; complete -p python; python run_train.py -sc query=bash"
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**environment(), **asks}, capture_output=True, text=True, timeout=120
    )
    assert "hydra_bash_completion" in result.stdout and "model=ddpmpp" in result.stdout, result.stderr


def test_links_within_the_pages_lead_somewhere():
    pages = {path: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}

    def anchors(page):
        """Return the anchors of the headings of a page, as GitHub makes them."""
        headings = re.findall(
            r"^#+ (.*)", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
        )
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    count = 0
    for path, page in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", page):
            if "://" not in target:
                file, _, anchor = target.partition("#")
                place = (path.parent / file).resolve() if file else path
                assert place.exists(), f"{path.name}: {target}"
                assert not anchor or anchor in anchors(pages[place]), f"{path.name}: {target}"
                count += 1
    assert count > 100


def test_make_lists_its_targets():
    result = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    listed = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [name for name, _ in listed] == re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert {"help", "demo", "test", "test-fast", "lint", "coverage"} <= {name for name, _ in listed}


def test_python_of_the_readme(place):
    code, _ = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\nprint(samples.shape, float(samples.min()) >= 0, "
    code += "float(samples.max()) <= 1, log_prob.shape, bool(log_prob.isfinite().all()))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "torch.Size([10, 1, 8, 8]) True True torch.Size([10]) True"


def test_benchmark_of_the_kernel(monkeypatch, capsys):
    monkeypatch.setattr(kernel, "SHAPE", (32, 3, 8, 8))
    monkeypatch.setattr(sys, "argv", ["kernel"])
    kernel.main()
    said = capsys.readouterr().out
    assert float(re.search(r"the definition: (\S+) apart", said)[1]) < 1e-5
    assert len(re.findall("^  definition ", said, re.MULTILINE)) == 2
    assert len(re.findall("^  this code ", said, re.MULTILINE)) == 3


def test_benchmark_of_the_training_step(monkeypatch, capsys):
    monkeypatch.setattr(step, "REPEATS", 1)
    monkeypatch.setattr(sys, "argv", ["step", "adm", "--batch", "8", "--profile"])
    step.main()
    said = capsys.readouterr().out
    assert all(re.search(rf"^  {way} +[\d.]+ ms  x [\d.]+ ", said, re.MULTILINE) for way in ("plain", "fp32", "bf16"))
    memory = [int(mib) for mib in re.findall(r"(\d+) MiB", said)]
    assert len(memory) == 4 and memory[2] < 0.6 * memory[1], "checkpointing takes less memory"
    assert "convolution" in said.splitlines()[-1]


def test_cost_of_a_recipe_in_the_readme(monkeypatch, capsys):
    monkeypatch.setattr(recipes, "RECIPES", ("cifar10_images",))
    monkeypatch.setattr(sys, "argv", ["recipes"])
    recipes.main()
    said = capsys.readouterr().out
    cost = re.search(r"(\d+) EFLOP", said)[0]
    row = next(line for line in README.splitlines() if "experiment=cifar10_images" in line)
    assert cost in row and "108 million parameters" in said


def test_every_other_command_is_run_by_another_test():
    known = ("python run_", "python -m models.", "python -m evaluation.", "python -m benchmarks.", "python -m pytest")
    known += ("python -m sampling.", "eval ", "tensorboard ")
    others = [command for command in COMMANDS if not command.startswith(known)]
    assert set(others) == ELSEWHERE.keys()
    for place in filter(None, ELSEWHERE.values()):
        path, name = place.split("::")
        assert f"def {name}" in (ROOT / "tests" / path).read_text(), place
    demo = MAKEFILE.split("\ndemo: ")[1].split("\n\n")[0]
    assert "run_train.py experiment=digits" in demo
    assert "run_vis.py load_dir=runs/demo 'label=[0,1,2,3,4,5,6,7,8,9]' w=1" in demo
    assert any(SLURM in command for command in COMMANDS)
    assert "partition" in (ROOT / "tests/scripts/test_slurm.py").read_text()


@pytest.mark.parametrize("script", ["train", "vis", "eval"])
def test_options_in_help_exist(script):
    known = {key for name in ("train", "vis", "eval") for key in option_keys(name)}
    known |= {"experiment", "data", "model", "logger", "metrics", "hydra.run.dir"}
    text = (ROOT / f"configs/hydra/help/{script}.yaml").read_text()
    keys = re.findall(r"[a-z_.]*[a-z]", text.split("Change first:")[1].split("All options")[0])
    assert len(keys) > 10 and not {*keys} - known

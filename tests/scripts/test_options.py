"""Options in configs/ and their annotations agree, and --help and docs/options.md show them."""

import inspect
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from cli.options import (
    CONFIGS,
    GROUPS,
    PAGE,
    annotated_options,
    choices,
    files_of,
    help_text,
    hint,
    is_path_key,
    lines_of,
    option_keys,
    page,
)  # fmt: skip
from datasets.registry import DATASETS
from losses.noise_levels import NOISE_LEVELS
from models.create import NETWORKS
from sampling import METHODS
from sampling.auto import AUTO
from sde import PROCESSES
from tests.conftest import composed
from training.loggers import LOGGERS
from training.optimizer import OPTIMIZERS, SCHEDULES
from training.options import OptimOptions
from utils.errors import InputError
from utils.options import Option, check_section, options_of, requirement

FILES = sorted({path for script in GROUPS for path in files_of(script)})


def value_of(text):
    """Parse a default as YAML, with 1e-4 as a number."""
    return OmegaConf.create(f"x: {text}").x if "$" not in text and text != "???" else text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_file_has_the_options_that_are_annotated_each_with_a_help_line(path):
    lines, options = lines_of(path), annotated_options(path)
    assert lines.keys() == options.keys()
    for key, option in options.items():
        assert len(lines[key].help) > 3, key
        assert requirement(option.annotation) != "a value", key
        default = value_of(lines[key].default)
        if option.default is not inspect.Parameter.empty and default != "???":
            default = list(default) if OmegaConf.is_list(default) else default
            wanted = list(option.default) if isinstance(option.default, tuple) else option.default
            assert default == wanted and isinstance(default, bool) == isinstance(wanted, bool), key


@pytest.mark.parametrize("script", GROUPS)
def test_the_files_are_read_as_hydra_reads_them(script):
    cfg = composed(*["load_dir=x"] * (script != "train"), name=script)
    for path in (CONFIGS / f"{script}.yaml", *(CONFIGS / group / "default.yaml" for group in GROUPS[script])):
        for key, line in lines_of(path).items() if path.exists() else ():
            if "$" not in line.default and line.default != "???":
                assert OmegaConf.select(cfg, key) == value_of(line.default), key


def test_every_registered_choice_has_a_file():
    registries = {"data": DATASETS, "model": NETWORKS, "sde": PROCESSES, "logger": LOGGERS}
    for group, registry in registries.items():
        key = "dataset" if group == "data" else "name"
        assert {yaml.safe_load(path.read_text())[key] for path in choices(group)} == set(registry), group
    assert requirement(annotated_options(CONFIGS / "sampling/default.yaml")["sampling.method"].annotation) == (
        f"one of {', '.join((*METHODS, AUTO))}"
    )
    for key, registry in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        assert requirement(options_of(OptimOptions)[key].annotation) == f"one of {', '.join(registry)}"
    assert all(name in lines_of(CONFIGS / "train.yaml")["training.noise_levels"].help for name in NOISE_LEVELS)


def test_docs_options_is_up_to_date():
    assert PAGE.read_text() == page(), "run python -m cli.options"
    keys = [key for script in GROUPS for path in files_of(script) for key in lines_of(path)]
    assert len(keys) > 100 and all(f"| `{key}` |" in PAGE.read_text() for key in keys)


def test_help_lists_every_option_with_its_default(script):
    said = script("run_train.py", "--help").stdout
    assert (
        "training.batch_size=128  images per step, over all processes (an integer, at least 1, at most 1e+06)" in said
    )
    assert "dataroot=${root}/datasets  " in said and "experiment=NAME, one of array, cifar10_images" in said
    for name in GROUPS:
        assert all(f"\n  {key}=" in help_text(name) for path in files_of(name) for key in lines_of(path)), name


def test_an_option_that_does_not_exist_is_answered_by_the_nearest_or_its_present_name():
    keys = option_keys("train")
    assert hint("trainig.n_iters", keys) == "; did you mean training.n_iters?"
    assert hint("training.accumulate", keys) == "; it is now training.grad_accum_steps"
    assert hint("xyzzy", keys) == ""


def test_sections_are_checked_with_every_annotation():
    def target(path: Path, count: int = 3, *, names: list[str] | None = None, anything=None, **more: object) -> None:
        pass

    options = options_of(target, leave_out=("path",))
    assert list(options) == ["count", "names", "anything"] and not options["count"].required
    check_section({"count": 2, "names": ["a"], "anything": object()}, options, "here")
    check_section({}, options, "here")
    for section, message in [
        ({"count": True}, "here.count=True: need an integer"),
        ({"count": 2.0}, "here.count=2.0: need an integer"),
        ({"count": float("nan")}, "here.count=nan: need an integer"),
        ({"coun": 1}, "here.coun: no such option; did you mean here.count?"),
        ({"count": "???"}, "here.count is missing: say here.count=..."),
        (3, "here=3: need a section with count, names, anything"),
    ]:
        with pytest.raises(InputError) as caught:
            check_section(section, options, "here")
        assert str(caught.value) == message
    with pytest.raises(InputError, match=r"^here\.x is missing$"):
        check_section({}, {"x": Option(int)}, "here")


def test_paths_are_known_by_their_annotation():
    assert all(is_path_key(key, "x") for key in ("root", "data.root", "load_dir", "metrics.reference", "hydra.run.dir"))
    assert not any(is_path_key(key, "a b") for key in ("seed", "data.background", "model.name", "optim.lr", "x"))

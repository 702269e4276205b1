"""The options of the three scripts: their list, their help, and docs/options.md (python -m cli.options writes it).

Defaults and help lines are read from the files in configs/; types and bounds from the annotations of the parameters
and fields that take the options.
"""

import argparse
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from cli import evaluation_options
from training import options as training_options
from utils.guidance_options import GuidanceOptions
from utils.old_keys import present_name
from utils.options import Option, did_you_mean, is_path, options_of, requirement

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PAGE = CONFIGS.parent / "docs/options.md"
GROUPS = {
    "train": ("data", "model", "sde", "sampling", "logger"),
    "vis": ("sampling",),
    "eval": ("metrics", "sampling"),
}
SCRIPTS = {"train": "run_train.py", "vis": "run_vis.py", "eval": "run_eval.py"}
HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir")


@dataclass(frozen=True)
class Line:
    """A line of a file in configs/ that defines an option.

    Attributes:
        key: full name, "section.name".
        default: default value as written in the file.
        help: comment at the end of the line.
    """

    key: str
    default: str
    help: str


def files_of(script: str) -> list[Path]:
    """Return the files in configs/ with the options of a script: its own, and those of its groups."""
    return [CONFIGS / f"{script}.yaml", *(path for group in GROUPS[script] for path in choices(group))]


def choices(group: str) -> list[Path]:
    """Return the files of a group, sorted by their names."""
    return sorted((CONFIGS / group).glob("*.yaml"))


@functools.cache
def lines_of(path: Path) -> dict[str, Line]:
    """Read the options in a file of configs/, with those of the files in configs/base that it begins with."""
    text, lines = path.read_text(), dict[str, Line]()
    for base in re.findall(r"- /?base/(\w+)@_here_", text):
        lines |= lines_of(CONFIGS / f"base/{base}.yaml")
    group = path.parent.name
    sections = [group] if path.parent.parent == CONFIGS and group != "base" else []
    if group == "base" and path.stem in GROUPS["train"]:
        sections = [path.stem]
    for line in _lines(text, sections):
        inherited = lines.get(line.key)
        lines[line.key] = Line(line.key, line.default, line.help or (inherited.help if inherited else ""))
    return lines


def _lines(text: str, outer: list[str]) -> Iterator[Line]:
    """Yield the option of each line ``key: value  # help`` of a configuration file; two blanks indent a section."""
    sections = list(outer)
    for line in text.splitlines():
        match = re.fullmatch(r"((?:  )*)(\w+):(?: +([^#\s].*?))?(?: +# (.*))?", line)
        if not match:
            continue
        indent, name, value, comment = match.groups()
        sections[len(outer) + len(indent) // 2 :] = [name]
        if sections[len(outer)] not in ("defaults", "hydra") and value not in (None, "{}"):
            yield Line(".".join(sections), value, comment or "")


@functools.cache
def option_keys(script: str) -> tuple[str, ...]:
    """Return the keys of all options of a script and the sections that they are in."""
    keys = [key for path in files_of(script) for key in lines_of(path)]
    sections = [key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)]
    return tuple(dict.fromkeys([*keys, *sections]))


def hint(key: str, keys: Iterable[str]) -> str:
    """Return a hint for a ``key`` that is none of ``keys``: its present name, or the nearest of ``keys``."""
    now = present_name(key)
    return f"; it is now {now}" if now else did_you_mean(key, keys)


def annotated_options(path: Path) -> dict[str, Option]:
    """Return {key: option}, from annotations, for the parameters and fields that take the options of a file."""
    # The registries import torch.
    from datasets.registry import data_options
    from models.create import model_options
    from sampling import sampling_options
    from sde import process_options

    group = path.parent.name
    if path.parent == CONFIGS:
        if path.stem == "train":
            sections = {"": training_options.TrainOptions, **training_options.SECTIONS}
        elif path.stem == "vis":
            sections = {"": evaluation_options.VisOptions, **evaluation_options.VIS_SECTIONS}
        else:
            sections = {"": evaluation_options.EvalOptions, **evaluation_options.EVAL_SECTIONS}
            sections["metrics"] = evaluation_options.MetricsOptions
        options = {name: options_of(of) for name, of in sections.items()}
        if path.stem == "train":
            options["training"] = training_options.training_options()
        return {key: option for name, own in options.items() for key, option in _prefixed(name, own).items()}
    values = yaml.safe_load(path.read_text())
    name = values.get("dataset" if group == "data" else "name", path.stem)
    of: dict[str, Callable[[str], dict[str, Option]]] = {
        "data": partial(data_options, has_shape="shape" in values),
        "model": model_options,
        "sde": process_options,
        "sampling": lambda _: sampling_options(),
        "logger": training_options.logger_options,
        "metrics": evaluation_options.metric_options,
    }
    return _prefixed(f"metrics.{name}" if group == "metrics" else group, of[group](name))


def _prefixed(section: str, options: Mapping[str, Option]) -> dict[str, Option]:
    return {f"{section}.{name}" if section else name: option for name, option in options.items()}


@functools.cache
def path_keys() -> frozenset[str]:
    """Return the keys whose values are paths, without those of data sets, networks, processes and samplers."""
    from_classes = {
        "": (training_options.TrainOptions, evaluation_options.EvalOptions, evaluation_options.VisOptions),
        "data": (evaluation_options.EvalDataOptions,),
        "metrics": (evaluation_options.MetricsOptions,),
        "guidance": (GuidanceOptions,),
    }
    keys = {
        key
        for section, classes in from_classes.items()
        for of in classes
        for key, option in _prefixed(section, options_of(of)).items()
        if is_path(option.annotation)
    }
    return frozenset({*keys, *HYDRA_PATHS})


def is_path_key(key: str, value: str) -> bool:
    """Return whether the option ``key`` is a path.

    The options of data sets, networks, processes and samplers are in their registries, which import torch: they are
    imported only if Hydra's grammar could change the ``value``.
    """
    section = key.partition(".")[0]
    if key in path_keys() or section not in ("data", "model", "sde", "sampling"):
        return key in path_keys()
    if re.fullmatch(r"[\w.+-]*|\[[\w.,+-]*\]", value):
        return False
    return any(
        key in options and is_path(options[key].annotation) for options in map(annotated_options, choices(section))
    )


def help_text(script: str) -> str:
    """Return the text for --help of a script: each option with its default, help line and allowed values."""
    parts = []
    if script == "train":
        recipes = (CONFIGS / "experiment").glob("**/*.yaml")
        names = sorted(str(path.relative_to(CONFIGS / "experiment").with_suffix("")) for path in recipes)
        parts += [f"experiment=NAME, one of {', '.join(names)}", ""]
    for title, rows in _tables(script):
        parts += [title, *(f"  {line.key}={line.default}  {line.help} ({need})" for line, need in rows), ""]
    return "\n".join(parts).rstrip().replace("$", "$$")  # Hydra substitutes $NAME


def _tables(script: str) -> Iterator[tuple[str, list[tuple[Line, str]]]]:
    """Yield (title, [(line, allowed values)]) for the options of a script, of its groups, and of each choice."""

    def rows(path: Path, lines: Iterable[Line]) -> list[tuple[Line, str]]:
        options = annotated_options(path)
        return [(line, requirement(options[line.key].annotation)) for line in lines]

    own = CONFIGS / f"{script}.yaml"
    yield SCRIPTS[script], rows(own, lines_of(own).values())
    for group in GROUPS[script]:
        paths, base = choices(group), CONFIGS / f"base/{group}.yaml"
        shared = lines_of(base) if base.exists() else {}
        if shared:
            names = ", ".join(path.stem for path in paths)
            first = next(path for path in paths if lines_of(path).keys() >= shared.keys())
            yield f"{group}=NAME, one of {names}", rows(first, shared.values())
        for path in paths:
            if lines := [line for key, line in lines_of(path).items() if key not in shared]:
                yield f"{group}={path.stem}", rows(path, lines)


def page() -> str:
    """Return the text of docs/options.md."""
    parts = [
        "# Options",
        "",
        "Every option of the three scripts, with its default, what it may be and what it is for.",
        "`python -m cli.options` makes this page from the files in `configs/` and the annotations in the code.",
        "",
    ]
    for script, file in SCRIPTS.items():
        parts += [f"## {file}", ""]
        for title, rows in _tables(script):
            parts += [] if title == file else [f"### {title}", ""]
            parts += ["| Option | Default | Values | What it is |", "|---|---|---|---|"]
            for line, need in rows:
                parts.append(f"| `{line.key}` | `{line.default}` | {need} | {line.help} |")
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description="Write docs/options.md.").parse_args()
    PAGE.write_text(page())

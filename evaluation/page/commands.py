"""The command lines that go on with a run: resume, draw, evaluate; quoted for a shell."""

from shlex import join

from datasets.options import MAX_IMAGE_SIZE
from evaluation.page.run_record import RunRecord
from sampling import METHODS

SHOWN_CLASSES = 10
PLACEHOLDER = "PATH"  # for a path with characters that a terminal could take as commands
# What the commands do, by the names of ``run_commands``.
PURPOSES = {
    "resume": "continue the run",
    "draw": "draw samples",
    "trajectory": "draw samples, and the way from noise to them",
    "densities": "measure densities on held-out data",
    "compare": "compare drawn samples with the data",
    "tune": "find a sampler for few evaluations",
    "data": "draw the data",
    "watch": "watch the curves",
    "page": "write this page again",
}


def run_commands(run: RunRecord) -> dict[str, str]:
    """Return the commands that go on with a run, to be pasted in the folder of this project, by their name."""
    path, load_dir, places = _path(run.path), f"load_dir={_path(run.path)}", _places(run)
    root = [f"data.root={value}" for key, value in places.items() if key == "data.root" and not run.is_image]
    size = run.options.get("max_image_size")
    larger = [f"max_image_size={size}"] if isinstance(size, int) and size > MAX_IMAGE_SIZE else []
    draw = [load_dir, *_labels(run), *_sampler(run), *root, *larger]
    measure = [load_dir, *larger, *(f"{key}={value}" for key, value in places.items())]
    compare = ["metrics=[energy_distance,memorization]", "metrics.num_images=1000", *_sampler(run)]
    names = {"dataroot": "--dataroot", "data.root": "--root", "data.held_out": "--held-out"}
    tune = [word for key, value in places.items() for word in (names[key], value)]
    tune += ["--max-image-size", str(size)] if larger else []
    return {
        "resume": _python("run_train.py", f"resume={path}", *_longer(run), *larger),
        "draw": _python("run_vis.py", *draw),
        "trajectory": _python("run_vis.py", *draw, "sampling.trajectory=10"),
        "densities": _python("run_eval.py", *measure),
        "compare": _python("run_eval.py", *measure, *compare),
        "tune": _python("-m", "sampling.tune", path, *tune),
        "data": _python("run_train.py", f"resume={path}", "training.n_iters=0", *larger),
        "watch": join(["tensorboard", "--logdir", path]),
        "page": _python("-m", "evaluation.page", path),
    }


def _python(*arguments: str) -> str:
    return join(["python", *arguments])


def _longer(run: RunRecord) -> list[str]:
    """Return the option that doubles the length of a run that has reached its end."""
    if run.total is None or run.step < run.total:
        return []
    images = run.option("training", "n_images", int)
    return [f"training.n_iters={2 * run.total}" if images is None else f"training.n_images={2 * images}"]


def _path(path: object) -> str:
    text = str(path)
    return text if text.isprintable() else PLACEHOLDER


def _places(run: RunRecord) -> dict[str, str]:
    """Return the options that say where the data are, unless that is their default."""
    known = {"dataroot": run.options.get("dataroot")}
    known |= {f"data.{key}": run.option("data", key, str) for key in ("root", "held_out")}
    if known["dataroot"] in ("./datasets", "datasets"):
        del known["dataroot"]
    return {key: _path(value) for key, value in known.items() if isinstance(value, str)}


def _sampler(run: RunRecord) -> list[str]:
    """Return the options of the sampler that the run itself draws with."""
    method, steps = run.option("sampling", "method", str), run.option("sampling", "steps", int)
    if method not in METHODS:
        return []
    return [f"sampling.method={method}"] + ([f"sampling.steps={steps}"] if steps else [])


def _labels(run: RunRecord) -> list[str]:
    """Return the option that draws each of the first classes."""
    number = run.option("data", "num_classes", int) or 0
    if not run.option("data", "classes", bool) or number < 2:
        return []
    return [f"label=[{','.join(map(str, range(min(number, SHOWN_CLASSES))))}]"]

"""The page of a run: its contents and numbers, what it refuses, and that nothing in a run is more than text on it."""

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import training.data
from cli.evaluation_options import check_eval, check_vis
from evaluation.page import __main__ as page
from evaluation.page import outputs, run_record, sections
from evaluation.page.charts import MOST_POINTS, in_script, results_chart, thin
from evaluation.page.commands import run_commands
from evaluation.page.pictures import MOST_PIXELS, read_picture
from evaluation.page.render import MARKER
from evaluation.page.run_record import read_run
from models.export import export
from tests.conftest import composed, metrics, tiny_config
from tests.evaluation.page_runs import draw_and_evaluate, pixels_of, set_classes, train_digits, write_in
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

ALONE = Distributed(torch.device("cpu"))
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e\ud800"


class Parsed(HTMLParser):
    """The elements of a page: names with attributes, contents of scripts, and text by section."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self.text, self._section, self._script = [], [], {}, "", None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "section":
            self._section = dict(attributes)["id"]
        if tag == "script":
            self._script = dict(attributes)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts.append((self._script, data))
        else:
            self.text[self._section] = self.text.get(self._section, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def figures(self):
        """Return the charts, by their title."""
        ids = {one["data-figure"]: one["aria-label"].split(";")[0] for one in self.all("div") if "data-figure" in one}
        return {ids[one["id"]]: json.loads(text) for one, text in self.scripts if one.get("type") == "application/json"}

    def pictures(self, section_text):
        """Return the pictures whose description begins with ``section_text``."""
        uris = [one["src"] for one in self.all("img") if one["alt"].startswith(section_text)]
        return [Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) for uri in uris]


@pytest.fixture(scope="module")
def place(tmp_path_factory, scripts):
    """Make a folder with a run, a drawing and an evaluation in the default places, and a second run."""
    folder = tmp_path_factory.mktemp("page")
    train_digits(folder / "run", ALONE)
    draw_and_evaluate(scripts, folder, "run")
    train_digits(folder / "other", ALONE, "optim.lr=1e-3", "training.snapshot_sampling=false", "seed=1")
    return folder


@pytest.fixture(scope="module")
def html(place):
    return write_in(place, "run")


@pytest.fixture(scope="module")
def parsed(html):
    return Parsed(html)


def set_key(path, key, text):
    """Set a key of a YAML file, which it has in one line, to a text."""
    lines = path.read_text().splitlines()
    (number,) = (i for i, line in enumerate(lines) if line.startswith(f"{key}: "))
    lines[number] = f"{key}: {json.dumps(text)}"
    path.write_text("\n".join(lines))


def copy_of(place, tmp_path):
    return shutil.copytree(place / "run", tmp_path / "run")


def test_the_curves_are_those_of_the_metrics(place, parsed):
    entries, figures = metrics(place / "run"), parsed.figures()
    training, held_out = figures["Loss"]["data"]
    assert training["x"] == [1, 2, 3, 4, 5, 6] and training["y"] == [entry["loss"] for entry in entries]
    assert held_out["x"] == [2, 4, 6] and held_out["y"] == [e["eval_loss"] for e in entries if "eval_loss" in e]
    quarters = figures["Loss by noise level"]["data"]
    found = [[value for entry in entries if (value := entry["loss_by_sigma"][k])] for k in range(4)]
    assert [curve["y"] for curve in quarters] == [values for values in found if values]
    assert figures["Learning rate"]["data"][0]["y"] == [entry["lr"] for entry in entries]
    low, high = figures["Loss"]["layout"]["yaxis"]["range"]
    assert 10**low < min(held_out["y"]) and max(training["y"]) < 10**high
    best = min(held_out["y"])
    assert f"{best:.4g} at step {held_out['x'][held_out['y'].index(best)]}" in parsed.text["overview"]


def test_the_pictures_are_those_of_the_run(place, parsed):
    steps = [2, 4, 6]
    shown = parsed.pictures("Samples drawn at step")
    stored = [Image.open(place / f"run/samples/iter_{step}/sample_0.png") for step in steps]
    assert list(map(pixels_of, shown)) == list(map(pixels_of, stored))
    frames = [one for one in parsed.all("div") if "data-label" in one]
    assert [one["data-label"].split(",")[0] for one in frames] == [f"step {step}" for step in steps]
    assert [("hidden" in one) for one in frames] == [True, True, False]
    (slider,) = (one for one in parsed.all("input"))
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "2", "2")
    assert slider["id"] in {one["for"] for one in parsed.all("label")}
    (data,) = parsed.pictures("Training data")
    assert pixels_of(data) == pixels_of(Image.open(place / "run/data.png"))
    (folder,) = (place / "vis").glob("*/*/images")
    for alt, name in (("Generated samples", "samples_0.png"), ("From noise", "trajectory.png")):
        (picture,) = parsed.pictures(alt)
        assert pixels_of(picture) == pixels_of(Image.open(folder / name))
    (neighbours,) = parsed.pictures("In each row")
    (evaluated,) = (place / "eval").glob("*/*")
    assert pixels_of(neighbours) == pixels_of(Image.open(evaluated / "memorization.png"))
    assert all(one["alt"] for one in parsed.all("img"))


def test_the_results_are_those_of_the_evaluation(place, parsed):
    (folder,) = (place / "eval").glob("*/*")
    results = json.loads((folder / "results.json").read_text())
    text = parsed.text["evaluations"]
    for name, result in results["metrics"].items():
        assert name in text and f"{result['value']:.5g}" in text and f"{result['error']:.2g}" in text
    assert json.dumps(results, indent=2) in text and "standard error of 20 drawn images" in text
    chart = parsed.figures()["Results"]["data"]
    assert [one["x"] for one in chart] == [[result["value"]] for result in results["metrics"].values()]
    assert [one["error_x"]["array"] for one in chart] == [[result["error"]] for result in results["metrics"].values()]


def test_what_was_run_is_told(place, parsed):
    assert "adm, parametrization" in parsed.text["overview"] and "6 of 6" in parsed.text["overview"]
    assert "model_channels: 8" in parsed.text["overview"]  # the whole configuration
    data = json.loads((place / "run/data.json").read_text())
    assert f"{data['training']['images']:,}" in parsed.text["data"] and "10 classes" in parsed.text["data"]
    counts = read_run(place / "run").cfg.data.class_counts
    assert all(str(count) in parsed.text["data"] for count in counts)
    assert parsed.text["checkpoints"].count("best") == 1
    index = [one["href"] for one in parsed.all("a")]
    assert index == [f"#{one['id']}" for one in parsed.all("section")]


def test_the_page_asks_for_nothing_and_allows_two_scripts(parsed):
    (policy,) = (one["content"] for one in parsed.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data: blob:" and "connect-src" not in rules
    scripts = [text for attributes, text in parsed.scripts if not attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests] and len(scripts) == 2
    addresses = [
        one[key] for _, one in parsed.elements for key in ("src", "href", "srcset", "data", "action") if key in one
    ]
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert not parsed.all("link") and not [key for _, one in parsed.elements for key in one if key.startswith("on")]


def test_what_a_run_says_is_only_text(place, tmp_path):
    run = copy_of(place, tmp_path)
    evaluated = shutil.copytree(next((place / "eval").glob("*/*")), run / "evaluated")
    drawn = shutil.copytree(next((place / "vis").glob("*/*")), run / "drawn")
    before = Parsed(write_in(tmp_path, "run"))
    set_classes(run, [HOSTILE, *map(str, range(9))])
    results = json.loads((evaluated / "results.json").read_text())
    results["metrics"][HOSTILE] = {"value": 1.0, "error": 2.0, "error_is": HOSTILE, HOSTILE: HOSTILE}
    (evaluated / "results.json").write_text(json.dumps(results))
    set_key(drawn / "images/vis.yaml", "given", HOSTILE[:-1])  # YAML holds no half of a pair
    set_key(run / ".hydra/config.yaml", "precision", HOSTILE[:-1])
    (run / "init_from.json").write_text(json.dumps({"path": HOSTILE}))
    entry = metrics(run)[0] | {HOSTILE: HOSTILE, "lr": HOSTILE, "loss_by_sigma": [HOSTILE, True, None, 1.0]}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    html = write_in(tmp_path, "run")
    parsed = Parsed(html)
    assert len(parsed.all("script")) == len(before.all("script")) and len(parsed.all("img")) == len(before.all("img"))
    assert "<script>alert" not in html and "<img src=x" not in html
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\ud800]", html.replace(page_script(html), ""))
    shown = r"</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e\ud800"
    assert shown in parsed.text["data"] and shown in parsed.text["evaluations"] and shown in parsed.text["overview"]
    assert shown[:-6] in parsed.text["drawings"]


def page_script(html):
    """Return the script of Plotly in a page."""
    return max(re.findall(r"<script>(.*?)</script>", html, re.DOTALL), key=len)


def test_json_in_a_script_ends_no_element():
    text = in_script(json.dumps("</script><!--&"))
    assert not set("<>&") & set(text) and json.loads(text) == "</script><!--&"
    chart = results_chart([sections.Measurement("", 1, HOSTILE, 1.0, None)])
    assert (
        not set("<>&") & set(chart.figure) and "<" not in json.loads(chart.figure)["layout"]["annotations"][0]["text"]
    )


def test_a_run_that_is_training_or_was_killed(place, tmp_path):
    run = copy_of(place, tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:3], lines[3][:40]]))
    (run / "samples/iter_4/sample_0.npy").unlink()  # its picture is being written
    parsed = Parsed(write_in(tmp_path, "run"))
    assert parsed.figures()["Loss"]["data"][0]["x"] == [1, 2, 3] and "3 of 6" in parsed.text["overview"]
    assert len(parsed.pictures("Samples drawn at step")) == 2
    assert "python run_train.py resume=run\n" in parsed.text["commands"].replace("Copy", "\n")


def test_sections_without_a_source_name_the_command(place, tmp_path):
    (tmp_path / "run/.hydra").mkdir(parents=True)
    shutil.copy(place / "run/.hydra/config.yaml", tmp_path / "run/.hydra")
    html = write_in(tmp_path, "run")
    parsed = Parsed(html)
    assert len(html) < 100_000 and not parsed.figures() and not parsed.all("img")  # no chart: no script for charts
    for section, command in {
        "data": "python run_train.py resume=run training.n_iters=0",
        "curves": "python run_train.py resume=run",
        "samples": "python run_train.py resume=run",
        "trajectories": "sampling.trajectory=10",
        "drawings": "python run_vis.py load_dir=run",
        "evaluations": "python run_eval.py load_dir=run",
        "neighbours": "'metrics=[energy_distance,memorization]'",
        "few": "python -m sampling.tune run",
        "checkpoints": "python run_train.py resume=run",
    }.items():
        assert command in parsed.text[section], section


def test_the_data_of_a_run_without_their_picture_are_drawn_by_the_command(place, tmp_path, scripts):
    run = copy_of(place, tmp_path)
    (run / "data.png").unlink()
    command = shlex.split(run_commands(read_run(run))["data"])
    assert scripts(tmp_path, *command[1:]).returncode == 0
    assert pixels_of(Image.open(run / "data.png")) == pixels_of(Image.open(place / "run/data.png"))
    assert metrics(run) == metrics(place / "run")


@pytest.mark.parametrize(
    "options",
    [
        ["sde=ve", "model.parametrization=edm", "data.classes=false"],
        ["data=array", "data.root=T.csv", "data.low=0", "data.high=1"],
        ["data=array", "data.root=PARTS.csv", "data.simplex=ordered", "sde=reflected_simplex"],
        ["data=array", "data.root=F.npy", "data.low=0", "data.high=1"],
    ],
)
def test_runs_of_every_kind_have_a_page(options, tmp_path, scripts):
    values = np.random.default_rng(0).uniform(0, 1, (40, 3))
    for name, rows in (("T", values), ("PARTS", values / values.sum(1, keepdims=True))):
        np.savetxt(tmp_path / f"{name}.csv", rows, fmt="%.17g", delimiter=",", header="a,b,c", comments="")
    np.save(tmp_path / "F.npy", np.random.default_rng(0).uniform(0, 1, (40, 1, 8, 8)))
    short = ["training.n_iters=2", "training.batch_size=8", "training.log_freq=1", "training.eval_freq=2"]
    short += ["eval.batch_size=4", "sampling.steps=3", "device=cpu", "hydra.run.dir=run"]
    arrays = any(option == "data=array" for option in options)
    network = ["model=mlp", "model.width=16"] if arrays else ["data=digits", "model=adm", "model.model_channels=8"]
    result = scripts(tmp_path, "run_train.py", *network, *options, *short)
    assert result.returncode == 0, result.stderr
    parsed = Parsed(write_in(tmp_path, "run"))
    assert len(parsed.pictures("Samples drawn")) == 1 and len(parsed.pictures("Training data")) == (not arrays)
    assert "label=" not in parsed.text["commands"] and ("Classes10" in parsed.text["data"]) == (not arrays)
    assert ("data.root=" in parsed.text["commands"]) == arrays
    if "data.simplex=ordered" not in options:
        return
    drawn = shlex.split(run_commands(read_run(tmp_path / "run"))["trajectory"])
    done = scripts(tmp_path, *drawn[1:], "eval.batch_size=2", "hydra.run.dir=drawn", "device=cpu")
    assert done.returncode == 0, done.stderr
    parsed = Parsed(write_in(tmp_path, "run", drawings=[Path("drawn")]))
    assert (
        "drawn/images/trajectory.npy" in parsed.text["trajectories"] and len(parsed.pictures("Generated samples")) == 1
    )


def test_the_commands_work_when_pasted(place, tmp_path, scripts):
    """The run has a name that a shell and Hydra would split."""
    run = shutil.copytree(place / "run", tmp_path / "it's a, run")
    commands = {name: shlex.split(line) for name, line in run_commands(read_run(run)).items()}
    assert all(words[0] in ("python", "tensorboard") for words in commands.values())
    drawn = scripts(tmp_path, *commands["draw"][1:], "eval.batch_size=10", "device=cpu", "hydra.run.dir=drawn")
    assert drawn.returncode == 0, drawn.stderr
    labels = np.load(tmp_path / "drawn/images/samples_0.npz")["labels"]
    assert labels.tolist() == list(range(10))
    resumed = scripts(tmp_path, *commands["resume"][1:], "training.snapshot_sampling=false", "device=cpu")
    assert resumed.returncode == 0 and metrics(run)[-1]["step"] == 12
    for name, check in (("trajectory", check_vis), ("densities", check_eval), ("compare", check_eval)):
        script, *options = commands[name][1:]
        plain = [f"load_dir={place}/run" if option.startswith("load_dir=") else option for option in options]
        check(composed(*plain, name=script[4:-3]))
    assert commands["page"] == ["python", "-m", "evaluation.page", str(run)]
    assert commands["tune"][:4] == ["python", "-m", "sampling.tune", str(run)]


def test_commands_name_no_path_with_control_characters(place, tmp_path):
    run = copy_of(place, tmp_path)
    set_key(run / ".hydra/config.yaml", "dataroot", "/a\x1b[201~\nrm -rf x")
    commands = run_commands(read_run(run))
    assert "dataroot=PATH" in commands["densities"] and all(line.isprintable() for line in commands.values())


def test_a_run_of_large_images_has_a_page_and_its_commands_allow_them(place, tmp_path):
    config = copy_of(place, tmp_path) / ".hydra/config.yaml"
    large = config.read_text().replace("  image_size: 8", "  image_size: 1024")
    config.write_text(large.replace("max_image_size: 512", "max_image_size: 1024"))
    assert "1 x 1024 x 1024" in Parsed(write_in(tmp_path, "run")).text["overview"]
    commands = run_commands(read_run(tmp_path / "run"))
    assert all("max_image_size=1024" in commands[name] for name in ("resume", "draw", "densities", "compare", "data"))
    assert "--max-image-size 1024" in commands["tune"]


def test_a_comparison_has_the_numbers_of_both_runs(place):
    parsed = Parsed(write_in(place, "run", "other"))
    assert (place / "page.html").exists()
    entries = [metrics(place / name) for name in ("run", "other")]
    curves = parsed.figures()["Training loss"]["data"]
    assert [curve["name"] for curve in curves] == ["run", "other"]
    assert [curve["y"] for curve in curves] == [[entry["loss"] for entry in part] for part in entries]
    assert curves[0]["line"]["color"] != curves[1]["line"]["color"]
    cells = parsed.text["differences"]
    assert "optim.lr" in cells and "seed" in cells and "snapshot_sampling" in cells and "model" not in cells
    assert len(parsed.all("input")) == 1 and "has drawn no samples" in parsed.text["samples"]
    assert (
        "energy_distance" in parsed.text["evaluations"] and "run_eval.py load_dir=other" in parsed.text["evaluations"]
    )


def test_an_earlier_page_is_replaced_and_nothing_else(place, tmp_path):
    first = write_in(place, "run", output=tmp_path / "a.html")
    assert first.split("\n")[1] == MARKER
    (tmp_path / "a.html").write_text(first[:2000])
    assert len(write_in(place, "run", output=tmp_path / "a.html")) == len(first)
    (tmp_path / "mine.html").write_text("<!doctype html>\nmine")
    (tmp_path / "empty.html").touch()
    os.mkfifo(tmp_path / "pipe.html")
    for name in ("mine.html", "empty.html", ".", "pipe.html"):
        with pytest.raises(InputError, match=r"exists, and is no page of evaluation.page: choose another --output"):
            write_in(place, "run", output=tmp_path / name)
    assert (tmp_path / "mine.html").read_text() == "<!doctype html>\nmine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "empty.html", "mine.html", "pipe.html"]


def test_evaluations_are_found_by_the_run_that_they_name(place, tmp_path):
    (evaluated,) = (place / "eval").glob("*/*")
    copy = shutil.copytree(evaluated, tmp_path / "elsewhere")
    assert "elsewhere" in write_in(place, "run", evaluations=[tmp_path])
    run = copy_of(place, tmp_path / "moved")
    assert "No evaluation of this run" in Parsed(write_in(tmp_path, str(run))).text["evaluations"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"elsewhere holds no output of .*: those in it are of load_dir=run"):
        write_in(tmp_path, str(run), evaluations=[copy])
    with pytest.raises(InputError, match=r"empty holds no output of .*: it has no eval.yaml of run_eval.py"):
        write_in(tmp_path, str(run), evaluations=[tmp_path / "empty"])
    shutil.copytree(copy, run / "inside/it")
    options = (copy / "eval.yaml").read_text()
    for other in (copy_of(place, tmp_path / "another"), "hf://user/run"):
        (run / "inside/it/eval.yaml").write_text(re.sub("load_dir: .*", f"load_dir: {other}", options))
        assert "No evaluation of this run" in Parsed(write_in(tmp_path, str(run))).text["evaluations"]
    (run / "inside/it/eval.yaml").write_text(options)
    assert "inside/it" in Parsed(write_in(tmp_path, str(run))).text["evaluations"]
    (run / "inside/it/results.json").unlink()  # interrupted before its first metric
    assert "No evaluation of this run" in Parsed(write_in(tmp_path, str(run))).text["evaluations"]


@pytest.mark.parametrize(
    ("results", "fault"),
    [
        ("{", "cannot be read"),
        ("[]", "it is no object"),
        ("{}", "has no metrics"),
        ('{"metrics": []}', "'metrics' has no number as its value"),
        ('{"metrics": {"fid": {"value": "3"}}}', "'fid' has no number as its value"),
        ('{"metrics": {"fid": {"value": 1, "error": []}}}', "the error of 'fid' is no number"),
        ('{"metrics": {"fid": {"value": 1' + "0" * 400 + "}}}", "'fid' has no number as its value"),
        ('{"metrics": ' + "[" * 50 + "]" * 50 + "}", "it is nested too deep"),
        ('{"metrics": ' + "[" * 10**5 + "]" * 10**5 + "}", "cannot be read"),
    ],
)
def test_damaged_results_are_refused_by_name(tmp_path, results, fault):
    path = tmp_path / "results.json"
    path.write_text(results)
    with pytest.raises(InputError, match=f"{path}.*{fault}"):
        outputs.read_results(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere/.hydra/config.yaml does not exist: nowhere is not a run directory"),
        (["run/data.json"], "run/data.json is a file: give the directory of a run"),
        (["run", "./run"], "a run is given twice"),
        (["run", "other", "--drawings", "vis"], "--drawings is for the page of one run"),
        (["run", "--evaluations", "gone\x1b"], r"gone\x1b is not a directory"),
        (["run", "--output", "gone/page.html"], "gone/page.html cannot be written"),
        (["published"], "published holds what the published code wrote or reads, such as an export: it has no metrics"),
        (["damaged"], "damaged/data.json is not the record of a data set"),
        (["run"], "run/metrics.jsonl is not a file, or larger than 100 bytes"),
    ],
)
def test_bad_arguments_end_in_one_line(place, monkeypatch, capsys, arguments, message):
    if arguments == ["published"]:
        export(place / "run", place / "published")
    if arguments == ["damaged"]:
        damaged = {"num_classes": 1, "class_names": 0, "training": 0, "held_out": 0}
        (shutil.copytree(place / "run", place / "damaged") / "data.json").write_text(json.dumps(damaged))
    if arguments == ["run"]:
        monkeypatch.setattr(run_record, "MAX_METRICS_BYTES", 100)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["page", *arguments])
    with pytest.raises(SystemExit) as stopped:
        page.main()
    said = str(stopped.value)
    assert message in said and said.isprintable()


def test_the_command_names_the_page(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["page", "run"])
    page.main()
    said = capsys.readouterr().out
    assert re.fullmatch(r"run/page\.html, [45]\.\d MB: open it in a browser\n", said)


def test_long_curves_are_means_of_all_entries():
    steps, values = list(range(1, 5001)), list(map(float, range(5000)))
    (shown, means), size = thin((steps, values))
    assert size == 3 and len(shown) == len(means) == 1667 <= MOST_POINTS
    assert shown[:2] == [3, 6] and shown[-1] == 5000 and means[:2] == [1.0, 4.0] and means[-1] == 4998.5
    assert thin((steps[:2000], values[:2000])) == ((steps[:2000], values[:2000]), 1)


def test_many_snapshots_are_thinned_evenly(place, tmp_path):
    run = copy_of(place, tmp_path)
    for step in range(10, 110):
        shutil.copytree(run / "samples/iter_2", run / f"samples/iter_{step}")
    shown = sections.snapshots_of(read_run(run))
    assert shown.number == 103 and len(shown.frames) == 30
    assert shown.frames[0].label.startswith("step 2") and shown.frames[-1].label.startswith("step 109")


def test_the_duration_is_that_of_the_speed(place):
    run, batch_size = read_run(place / "run"), 8
    expected = sum(batch_size / entry["images_per_sec"] for entry in metrics(place / "run")[:4])
    assert run.seconds(4) == pytest.approx(expected) and run.seconds(7) is None
    assert [sections.duration(s) for s in (0.2, 59, 61, 3700, 90061)] == [
        "about 0 s", "about 59 s", "about 1 min 1 s", "about 1 h 1 min", "about 1 d 1 h",
    ]  # fmt: skip


def test_pictures_are_decoded_and_large_ones_reduced(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=None)
    shown = read_picture(tmp_path / "a.png", "a")
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.uri.split(",")[1])))
    assert np.array_equal(np.asarray(decoded), pixels) and (shown.width, shown.height) == (7, 5)
    Image.new("L", (4000, 2000)).save(tmp_path / "large.png")
    large = read_picture(tmp_path / "large.png", "large")
    assert 0.99 * MOST_PIXELS < large.width * large.height <= MOST_PIXELS and large.width // large.height in (1, 2)
    (tmp_path / "text.png").write_text("<svg onload=alert(1)>")
    assert "cannot be read" in read_picture(tmp_path / "text.png", "text").fault


def test_results_that_are_not_finite_have_no_point():
    assert results_chart([sections.Measurement("", 1, "fid", float("nan"), None)]) is None


def test_new_runs_of_images_draw_their_data(tmp_path):
    train(tiny_config("training.snapshot_sampling=false"), tmp_path, ALONE)
    assert Image.open(tmp_path / "data.png").size == (3 * 42 + 2, 3 * 42 + 2)  # a batch of eight


def test_the_grid_of_large_images_has_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(training.data, "MOST_PIXELS", 3 * 64)
    train(tiny_config("training.snapshot_sampling=false"), tmp_path, ALONE)
    assert Image.open(tmp_path / "data.png").size == (2 * 42 + 2, 2 * 42 + 2)

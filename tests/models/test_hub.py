"""Models on the Hub, from a local server that answers as the Hub does what the real huggingface_hub asks."""

import hashlib
import json
import pickle
import sys
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from models.export import export
from models.io.hub import local_path, pinned_path
from tests.conftest import TINY, environment, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError
from utils.hub_names import HubName, on_hub, parse_hub_name

DRAW = ["sampling.method=multistep", "sampling.steps=2", "eval.batch_size=4", "label=[0,1,2,3]", "device=cpu"]
NOWHERE = "http://127.0.0.1:9"  # no server
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass
class Repo:
    """A model on the server: the files of each revision, newest last."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def push(self, files: dict[str, bytes]) -> str:
        """Add a commit with these files, and return its hash."""
        content = "".join(name + hashlib.sha1(data).hexdigest() for name, data in sorted(files.items()))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = files
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit of a revision."""
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


class Hub(ThreadingHTTPServer):
    """A server with the part of the Hub's interface that downloads use."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def push(self, name: str, files: dict[str, bytes]) -> str:
        """Add a commit to a model; see ``Repo``."""
        return self.repos.setdefault(name, Repo()).push(files)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 6:
            repo, (kind, revision) = "/".join(parts[2:4]), parts[4:6]
        elif len(parts) >= 5 and parts[2] == "resolve":
            repo, kind, revision = "/".join(parts[:2]), "resolve", parts[3]
        else:
            return self.answer(b"{}", 404)
        if repo not in self.server.repos:
            return self.answer(b"{}", 401, X_Error_Code="RepoNotFound")
        commit = self.server.repos[repo].find(unquote(revision))
        if commit is None:
            return self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
        files = self.server.repos[repo].commits[commit]
        if kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self.answer(json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())
        if kind == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.answer(json.dumps(entries).encode())
        name = unquote("/".join(parts[4:]))
        if self.command == "GET":
            self.server.asked.append(name)
        if name not in files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        return self.answer(files[name], ETag=etag, X_Repo_Commit=commit)

    do_HEAD = do_GET  # noqa: N815


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scripts):
    """Make a run on digits with two checkpoints, its export, and images from it."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["training.snapshot_sampling=false", "training.snapshot_freq=1", "optim.lr=0.01"]
    train(tiny_config(*options), folder / "run", Distributed(torch.device("cpu")))
    export(folder / "run", folder / "export", "safetensors")
    assert scripts(folder, "run_vis.py", "load_dir=run", *DRAW, "hydra.run.dir=local").returncode == 0
    return folder


@pytest.fixture
def hub(trained):
    """Start a server with the models u/run, with files that are not read, and u/export."""
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    others = dict.fromkeys(("model.pkl", "evil.py", "checkpoints/extra.bin", "unet/model.safetensors"), b"1")
    others["other.safetensors"] = b"1"
    server.push("u/run", files_of(trained / "run") | others)
    server.push("u/export", files_of(trained / "export"))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(hub, scripts, tmp_path):
    """Return a function that runs a script with the server as its Hub, and a cache in the folder of the test."""

    def call(name, *arguments, **changes):
        env = environment() | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **QUIET, **changes}
        return scripts(tmp_path, name, *arguments, env=env)

    return call


def samples(folder):
    return np.load(folder / "images/samples_0.npz")["samples"]


def recorded(path):
    return OmegaConf.load(path).load_dir


def test_names():
    commit = "0" * 40
    for text, name, written in [
        ("hf://u/n", HubName("u/n"), "hf://u/n@main"),
        ("hf:/u/n", HubName("u/n"), "hf://u/n@main"),  # as pathlib writes it
        (Path("hf://u/n@v1/a/b.c"), HubName("u/n", "v1", "a/b.c"), "hf://u/n@v1/a/b.c"),
        ("hf://u/n@refs%2Fpr%2F1/", HubName("u/n", "refs/pr/1"), "hf://u/n@refs%2Fpr%2F1"),
        (f"hf://u.v/n-1_a@{commit}", HubName("u.v/n-1_a", commit), f"hf://u.v/n-1_a@{commit}"),
    ]:
        assert on_hub(text) and parse_hub_name(text) == name and str(name) == written
        assert parse_hub_name(written) == name
    assert not any(map(on_hub, ["runs/hf", "/hf/u/n", "hf", "hf:", "hf:///u/n", Path("a/hf://u/n"), "https://u/n"]))
    for text in ("hf://u", "hf://u/", "hf://u@v/n", "hf://u/n/../../x", "hf://u/n@v@w", "hf://u/n@/f"):
        with pytest.raises(InputError, match="a model on the Hub is written hf://USER/NAME"):
            parse_hub_name(text)


def test_paths_are_left_alone(tmp_path):
    assert local_path("hf") == Path("hf") and pinned_path("a/b", tmp_path / "a/b") == str(tmp_path / "a/b")


@pytest.mark.slow(20)
def test_a_run_on_the_hub_is_that_run(hub, run, trained, tmp_path):
    drawn = run("run_vis.py", "load_dir=hf://u/run", *DRAW, "hydra.run.dir=first")
    assert drawn.returncode == 0, drawn.stderr
    assert "HTTP" not in drawn.stderr
    wanted = {".hydra/config.yaml", "checkpoints.json", "checkpoints/checkpoint_1.pth", "checkpoints/checkpoint_2.pth"}
    assert set(hub.asked) == wanted
    first = hub.repos["u/run"].find("main")
    assert recorded(tmp_path / "first/images/vis.yaml") == f"hf://u/run@{first}"
    assert np.array_equal(samples(tmp_path / "first"), samples(trained / "local"))

    older = [*DRAW, "eval.ckpt=1", "hydra.run.dir=older"]
    assert run("run_vis.py", "load_dir=hf://u/run@main", *older, HF_HUB_OFFLINE="1").returncode == 0
    named = [*DRAW, "hydra.run.dir=named"]
    assert run("run_vis.py", "load_dir=hf://u/run/checkpoints/checkpoint_1.pth", *named).returncode == 0
    assert np.array_equal(samples(tmp_path / "older"), samples(tmp_path / "named"))
    assert not np.array_equal(samples(tmp_path / "older"), samples(trained / "local"))

    hub.asked.clear()
    files = files_of(trained / "run")
    files["checkpoints/checkpoint_2.pth"] = files["checkpoints/checkpoint_1.pth"]
    second = hub.push("u/run", files)
    assert run("run_vis.py", "load_dir=hf://u/run", *DRAW, "hydra.run.dir=second").returncode == 0
    assert recorded(tmp_path / "second/images/vis.yaml") == f"hf://u/run@{second}"
    assert np.array_equal(samples(tmp_path / "second"), samples(tmp_path / "older"))
    assert hub.asked == []  # of each content one copy
    other = run("run_vis.py", "load_dir=hf://u/run", *DRAW, "hydra.run.dir=first", "eval.rounds=2")
    assert other.returncode == 1 and f"load_dir=hf://u/run@{first}, not hf://u/run@{second}" in other.stderr
    again = run("run_vis.py", f"load_dir=hf://u/run@{first}", *DRAW, "hydra.run.dir=again", HF_ENDPOINT=NOWHERE)
    assert again.returncode == 0, again.stderr
    assert np.array_equal(samples(tmp_path / "again"), samples(trained / "local"))


@pytest.mark.slow(20)
def test_every_reader_of_runs_reads_the_hub(hub, run, trained, tmp_path):
    commits = {name: repo.find("main") for name, repo in hub.repos.items()}
    weak = ["guidance.dir=hf://u/run", "guidance.ckpt=1", "w=0"]
    drawn = run("run_vis.py", "load_dir=hf://u/export", *DRAW, *weak, "hydra.run.dir=exported")
    assert drawn.returncode == 0, drawn.stderr
    written = OmegaConf.load(tmp_path / "exported/images/vis.yaml")
    assert written.load_dir == f"hf://u/export@{commits['u/export']}/model.safetensors"
    assert (written.guidance.dir, written.guidance.ckpt) == (f"hf://u/run@{commits['u/run']}", 1)
    assert np.array_equal(samples(tmp_path / "exported"), samples(trained / "local"))

    measured = ["metrics=[energy_distance]", "metrics.num_images=4", *DRAW, "hydra.run.dir=measured"]
    result = run("run_eval.py", "load_dir=hf://u/run", *measured)
    assert result.returncode == 0, result.stderr
    assert recorded(tmp_path / "measured/eval.yaml") == f"hf://u/run@{commits['u/run']}"
    assert commits["u/run"] in json.loads((tmp_path / "measured/results.json").read_text())["checkpoint"]["file"]

    result = run("run_train.py", *TINY, "init_from=hf://u/run", "training.n_iters=1", "hydra.run.dir=tuned")
    assert result.returncode == 0, result.stderr
    assert OmegaConf.load(tmp_path / "tuned/.hydra/config.yaml").init_from == "hf://u/run"
    record = json.loads((tmp_path / "tuned/init_from.json").read_text())
    assert record["path"] == f"hf://u/run@{commits['u/run']}/checkpoints/checkpoint_2.pth" and record["fresh"] == []

    hub.push("u/many", {f"sub/{name}": data for name, data in files_of(trained / "run").items()} | {"x/1.bin": b"1"})
    assert run("models/export.py", "hf://u/many/sub", "out.safetensors", "--format", "safetensors").returncode == 0
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(trained / "export/model.safetensors").keys()
    result = run("sampling/tune.py", "hf://u/run", "--nfe", "3")
    assert result.stderr.strip().startswith("hf://u/run is on the Hub, and the levels are stored in the run")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hf://u/none", {}, "hf://u/none: there is no such model, or it is private"),
        ("hf://u/run@v9", {}, "hf://u/run@v9: the model has no revision v9"),
        ("hf://u", {}, "hf://u: a model on the Hub is written hf://USER/NAME"),
        ("hf://u/a--b", {}, "hf://u/a--b cannot be downloaded: Cannot have -- or .. in repo_id"),
        ("hf://u/run", {"HF_ENDPOINT": NOWHERE}, "it is not complete in the cache, and the Hub cannot be reached"),
        ("hf://u/run", {"HF_HUB_OFFLINE": "1"}, "it is not complete in the cache"),
        ("hf://u/run/nowhere", {}, "/nowhere is not a run directory"),
    ],
)
def test_what_cannot_be_downloaded_is_one_line(name, changes, message, run, tmp_path):
    result = run("run_vis.py", f"load_dir={name}", *DRAW, **changes)
    assert result.returncode == 1
    said = result.stderr.splitlines()
    assert len(said) == 1 and message in said[0]
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}


def test_without_the_package_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="hf://u/n needs the package huggingface_hub: pip install huggingface_hub"):
        local_path("hf://u/n")


CONFIG = OmegaConf.to_yaml(tiny_config()).encode()


class Attack:
    """Write a file when it is unpickled."""

    def __reduce__(self):
        return (Path.write_text, (Path("executed"), "yes"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints/checkpoint_9/../../../../../../evil.pth": b"1"}, "cannot be downloaded: "),
        ({".hydra/config.yaml": b"a: 1\n" * 10**6}, "config.yaml is too long for the configuration of a run"),
        ({".hydra/config.yaml": CONFIG + b"more: ${oc.env:HOME}\n"}, r"config.yaml: holds an interpolation"),
        (
            {"checkpoints/checkpoint_3.pth": pickle.dumps(Attack(), 2)},
            "checkpoint_3.pth cannot be read as a checkpoint",
        ),
    ],
)
def test_a_hostile_model_is_refused(changes, message, hub, run, trained, tmp_path):
    hub.push("u/evil", files_of(trained / "run") | changes)
    result = run("run_vis.py", "load_dir=hf://u/evil", *DRAW)
    assert result.returncode == 1
    said = result.stderr.splitlines()
    assert len(said) == 1 and message in said[0] and len(said[0]) < 500
    assert not list(tmp_path.rglob("executed")) and {path.name for path in tmp_path.iterdir()} == {"hf"}
    assert not [path for path in tmp_path.rglob("evil.pth") if "snapshots" not in path.parts]

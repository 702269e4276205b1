"""The published weights, fetched from a local server."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from models import load_pretrained
from models.download import IDS, download
from tests.conftest import ROOT
from tests.models.test_models import GOLDEN
from utils.errors import UserError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path):
    """Serve a folder with a good archive of each name; return the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in IDS:
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(GOLDEN / "reference_run", arcname=f"outer/{name}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_script_fetches_all_and_can_be_run_again(mirror, tmp_path):
    folder, url = mirror
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    command = ["sh", str(ROOT / "download_pretrained.sh"), "--mirror", url, "--to", str(tmp_path / "weights")]
    for said in ("is ready", "is there"):
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count(said) == len(IDS)
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["SHA256SUMS", *sorted(IDS)]
    sums = dict(reversed(line.split()) for line in (tmp_path / "weights/SHA256SUMS").read_text().splitlines())
    for name in IDS:
        archive = folder / f"{name}.tar.gz"
        assert sums[archive.name] == hashlib.sha256(archive.read_bytes()).hexdigest()
        net, _ = load_pretrained(tmp_path / "weights" / name)
        assert isinstance(net.network.conv_in.weight, torch.Tensor)


def escaping(folder, member):
    """Write an archive with ``member`` beside a good model directory."""
    with tarfile.open(folder / "cifar10.tar.gz", "w:gz") as archive:
        archive.add(GOLDEN / "reference_run", arcname="cifar10")
        archive.addfile(member, io.BytesIO(b"x" * member.size))


def claiming(folder, member):
    """Write an archive with ``member``, whose contents are missing."""
    with tarfile.open(folder / "cifar10.tar.gz", "w:gz") as archive:
        archive.add(GOLDEN / "reference_run", arcname="cifar10")
        archive.fileobj.write(member.tobuf() + b"x" * 512)


def member(name, size=1, **attributes):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "cifar10.tar.gz").unlink(), "could not be downloaded.*404.*in a browser"),
        (lambda f: (f / "cifar10.tar.gz").write_text("<!DOCTYPE html><html>quota exceeded"), "HTML page"),
        (lambda f: (f / "cifar10.tar.gz").write_bytes(b"\0" * 7), "not a whole tar archive"),
        (lambda f: os.truncate(f / "cifar10.tar.gz", 30_000), "not a whole tar archive"),
        (lambda f: escaping(f, member("../outside")), "not safe to unpack"),
        (lambda f: escaping(f, member("link", 0, type=tarfile.SYMTYPE, linkname="../../..")), "not safe to unpack"),
        (lambda f: escaping(f, member("pipe", 0, type=tarfile.CHRTYPE)), "not safe to unpack"),
        (lambda f: escaping(f, member("second/.hydra/config.yaml")), "does not hold one model directory"),
        (lambda f: escaping(f, member("x", 0, type=tarfile.LNKTYPE, linkname="gone")), "x links to gone, which is not"),
        (lambda f: escaping(f, member("deep/" * 1500 + "x")), "the path of a member is too long: deep/"),
        (lambda f: escaping(f, member("x" * 300)), "cannot be unpacked: .*File name too long"),
        (lambda f: escaping(f, member("cifar10/.hydra/CONFIG.yaml")), "CONFIG.yaml and .*config.yaml are one file on"),
        (lambda f: escaping(f, member("cifar10/.hydra/config.yaml/x")), "cannot be unpacked: .*Not a directory"),
        (lambda f: claiming(f, member("x", 10**15)), "needs 1,000,000.0 GB unpacked, the disk has"),
        (lambda f: claiming(f, member("x", 2**31, type=tarfile.XHDTYPE)), "a header in it has 2,147,483,648 bytes"),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(mirror, tmp_path, spoil, message):
    folder, url = mirror
    spoil(folder)
    with pytest.raises(UserError, match=message) as refusal:
        download("cifar10", tmp_path / "weights", url)
    assert "\n" not in str(refusal.value)
    left = {p.name for p in (tmp_path / "weights").iterdir()}
    assert left <= {"cifar10.tar.gz"} and not (tmp_path / "outside").exists()
    if "tar archive" in message or "HTML" in message or "404" in message:
        assert not left  # so that the next try fetches again


def test_an_archive_that_differs_from_the_recorded_one_is_refused(mirror, tmp_path):
    folder, url = mirror
    target = download("cifar10", tmp_path / "weights", url)
    shutil.rmtree(target)
    with tarfile.open(folder / "cifar10.tar.gz", "w:gz") as archive:
        archive.add(GOLDEN / "reference_run", arcname="other")
    with pytest.raises(UserError, match="SHA256SUMS recorded"):
        download("cifar10", tmp_path / "weights", url)
    assert not target.exists()


def test_a_python_that_cannot_unpack_safely_does_not_unpack(mirror, tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"needs Python 3\.11\.4"):
        download("cifar10", tmp_path / "weights", mirror[1])
    assert not (tmp_path / "weights/cifar10").exists()


def test_an_archive_put_there_by_hand_is_used_and_kept(mirror, tmp_path):
    folder, _ = mirror
    (tmp_path / "weights").mkdir()
    archive = shutil.copy(folder / "cifar10.tar.gz", tmp_path / "weights/cifar10.tar.gz")
    target = download("cifar10", tmp_path / "weights", "http://127.0.0.1:9/nothing")
    assert (target / "checkpoints/checkpoint_1.pth").is_file() and archive.exists()
    assert len((tmp_path / "weights/SHA256SUMS").read_text().splitlines()) == 1

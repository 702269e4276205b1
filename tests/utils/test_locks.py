"""Locks between two processes: refused, waited for, released by a kill; disks on which they cannot be written."""

import errno
import logging
import os
import subprocess
import sys
import threading

import pytest

from tests.conftest import ROOT, environment
from utils.errors import InputError, UserError
from utils.locks import exclusive, in_turn

CODE = """
import sys
from pathlib import Path
from utils.locks import exclusive, in_turn
with {call}:
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other_process(tmp_path):
    """Start another process that takes a lock in ``tmp_path`` and keeps it until it reads a line."""
    started = []

    def start(call):
        process = subprocess.Popen(
            [sys.executable, "-c", CODE.format(call=call)], cwd=tmp_path, text=True,
            env={**environment(), "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_directory_in_use_is_refused_until_its_process_is_killed(tmp_path, other_process):
    process = other_process('exclusive(Path("a/b"), "")')
    folder = tmp_path / "a/b"
    with (
        pytest.raises(InputError, match=r"a/b is in use: another run writes there$"),
        exclusive(folder, "another run writes there"),
    ):
        pass
    process.kill()
    process.wait()
    with exclusive(folder, ""):
        with pytest.raises(InputError), exclusive(folder, ""):
            pass
        with pytest.raises(InputError), exclusive(folder, ""):  # the refusal released nothing
            pass
    with pytest.raises(KeyError), exclusive(folder, ""):
        raise KeyError
    with exclusive(folder, ""):
        pass


def test_a_lock_file_is_waited_for(tmp_path, other_process, caplog):
    caplog.set_level(logging.INFO)
    with in_turn(tmp_path / "lock", "someone prepares it"):
        pass
    assert not caplog.text
    process = other_process('in_turn(Path("lock"), "")')
    timer = threading.Timer(0.3, process.kill)
    timer.start()
    with in_turn(tmp_path / "lock", "someone prepares it"):
        assert process.poll() is not None or process.wait(5) != 0
    timer.join()
    assert [record.message for record in caplog.records] == ["waiting: someone prepares it"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_does_not_take_the_lock_file_is_one_line(tmp_path, monkeypatch, code):
    real = os.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith("lock"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    for lock in (exclusive(tmp_path, ""), in_turn(tmp_path / ".lock", "")):
        with pytest.raises(UserError, match=rf"/\.lock cannot be written: {os.strerror(code)}$"), lock:
            pass


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/below cannot be written: Not a directory$"),
        exclusive(tmp_path / "file/below", ""),
    ):
        pass

"""One run a folder, and nobody is kept out by the dead."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lit_sft.errors import InputError
from lit_sft.run.lock import hold_folder

ROOT = Path(__file__).parents[3]
HOLDER = """
import os, sys, time
from pathlib import Path
from lit_sft.run.lock import hold_folder

with hold_folder(Path(sys.argv[1])):
    child = os.fork()  # as a loader worker is
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder, and the number of a child of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait()
    os.kill(child, 9)


def test_who_holds_a_folder_is_named_until_it_is_killed(holder, tmp_path):
    process, child = holder
    host = re.escape(socket.gethostname())
    named = rf"in use by another fit \(host {host}, process {process.pid}, since 2\d{{3}}-\d\d-"
    with pytest.raises(InputError, match=named), hold_folder(tmp_path):
        pass
    with hold_folder(tmp_path, "predict"):  # what has been saved so far may be looked at
        pass
    process.kill()
    process.wait()
    os.kill(child, 0)  # its loader worker lives on
    with hold_folder(tmp_path):
        assert json.loads((tmp_path / ".fit.lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".fit.lock").read_text() == ""


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_another_rank_takes_no_lock(holder, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with hold_folder(tmp_path):
        pass


def test_one_process_may_hold_a_folder_again_and_inside_of_itself(tmp_path):
    for _ in range(2):
        with hold_folder(tmp_path), hold_folder(tmp_path):
            pass
        with hold_folder(tmp_path):
            code = [sys.executable, "-c", HOLDER, tmp_path]
            other = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
            assert f"process {os.getpid()}" in other.stderr


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    """The kernel here has locks everywhere; what it says where it has none is stood in for."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with hold_folder(tmp_path):
        pass
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "without locks (No locks available): a second run" in told


def test_the_holder_removes_what_killed_runs_left(tmp_path):
    for parent in (tmp_path, tmp_path / "checkpoints"):
        (parent / ".last.ckpt.ffffffff.01234567.tmp").mkdir(parents=True)
    with hold_folder(tmp_path, "predict"):
        assert len(list(tmp_path.rglob("*.tmp"))) == 2
    with hold_folder(tmp_path):
        assert list(tmp_path.rglob("*.tmp")) == []


def test_what_is_half_written_of_a_run_in_a_folder_inside_stays(tmp_path):
    """It has a lock of its own, and may be writing on another machine."""
    inner = tmp_path / "a"
    for folder in (inner, tmp_path / "logs"):
        (folder / ".adapter.deadbeef.12345678.tmp").mkdir(parents=True)
    (inner / ".fit.lock").touch()
    with hold_folder(tmp_path):
        assert (inner / ".adapter.deadbeef.12345678.tmp").is_dir()
        assert not (tmp_path / "logs" / ".adapter.deadbeef.12345678.tmp").exists()

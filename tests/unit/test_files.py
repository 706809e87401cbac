"""Whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_sft.errors import InputError
from lit_sft.files import replace_file, replace_folder, require_writable

ROOT = Path(__file__).parents[2]


def test_a_file_that_failed_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "sub" / "file"
    with replace_file(path) as staged:
        staged.write_text("old")

    def fail() -> None:
        with replace_file(path) as staged:
            staged.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_failed_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder"
    with replace_folder(path) as staged:
        (staged / "a").write_text("old")

    def fail() -> None:
        with replace_folder(path) as staged:
            (staged / "a").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (path / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_holds_nothing_of_the_old_one(tmp_path):
    path = tmp_path / "folder"
    for name in ("a", "b"):
        with replace_folder(path) as staged:
            (staged / name).write_text("")
    assert [file.name for file in path.iterdir()] == ["b"]
    assert path.stat().st_mode & 0o777 == 0o755


KILLED = """
import os, signal, sys
from pathlib import Path
from lit_sft.files import replace_folder

path, renames = Path(sys.argv[1]), 0

def strike(event, args):
    global renames
    renames += event == "os.rename"
    if (event, renames) == ("os.rename", 2):
        os.kill(os.getpid(), signal.SIGKILL)

with replace_folder(path) as staged:
    for name in "ab":
        (staged / name).write_text("new")
    sys.addaudithook(strike)
"""


def test_a_kill_between_two_renames_would_leave_no_folder(tmp_path):
    """It is killed before a second rename, if it takes two to replace a folder."""
    path = tmp_path / "folder"
    with replace_folder(path) as staged:
        for name in "ab":
            (staged / name).write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, check=False)
    contents = [(path / name).read_text() for name in "ab"]
    assert contents in (["old", "old"], ["new", "new"])


def test_a_folder_is_replaced_where_the_system_cannot_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    for text in ("old", "new"):
        with replace_folder(tmp_path / "folder") as staged:
            (staged / "a").write_text(text)
    assert (tmp_path / "folder" / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_the_temporary_file_is_on_the_same_file_system(tmp_path):
    with replace_file(tmp_path / "file") as staged:
        assert staged.parent == tmp_path
        staged.write_text("")


def test_writable_folders_are_made_and_others_named(tmp_path):
    require_writable(tmp_path / "new" / "folder", "an.option")
    assert os.listdir(tmp_path / "new" / "folder") == []  # noqa: PTH208
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"an\.option: the folder .*file' cannot be written"):
        require_writable(tmp_path / "file", "an.option")

"""Whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lit_sft.errors import InputError
from lit_sft.files import (
    ABANDONED_SECONDS,
    remove_leftovers,
    replace_file,
    replace_folder,
    require_writable,
)

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


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)]
)
def test_who_may_read_it_is_for_the_umask_to_say(tmp_path, umask, folder, file):
    """A library may write a file for its owner alone."""
    path, before = tmp_path / "folder", os.umask(umask)
    try:
        with replace_folder(path) as staged:
            (staged / "weights").touch(0o600)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == folder
    assert (path / "weights").stat().st_mode & 0o777 == file


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
        assert staged.parent.parent == tmp_path
        staged.write_text("")


def test_writable_folders_are_made_and_others_named(tmp_path):
    require_writable(tmp_path / "new" / "folder", "an.option")
    assert os.listdir(tmp_path / "new" / "folder") == []  # noqa: PTH208
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"an\.option: the folder .*file' cannot be written"):
        require_writable(tmp_path / "file", "an.option")


WRITER = """
import sys, time
from pathlib import Path
from lit_sft.files import replace_file

path = Path(sys.argv[1])
with replace_file(path) as staged:
    staged.with_name("of a library").write_text("its own temporary file")
    staged.write_text("new")
    print(staged, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start_writer(tmp_path):
    """Start processes that are in the middle of writing a file; return them and what they stage."""
    started = []

    def start(path: Path) -> tuple[subprocess.Popen, Path]:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(writer)
        return writer, Path(writer.stdout.readline().strip())

    yield start
    for writer in started:
        writer.kill()
        writer.wait()


def test_what_a_kill_left_goes_with_the_next_file_and_what_is_being_written_stays(
    tmp_path, start_writer
):
    (killed, dead), (_, alive) = (start_writer(tmp_path / name) for name in ("one", "two"))
    killed.kill()
    killed.wait()
    assert dead.is_file()
    with replace_file(tmp_path / "three") as staged:
        staged.write_text("3")
    assert {path.name for path in tmp_path.iterdir()} == {"three", alive.parent.name}
    remove_leftovers(tmp_path, is_held=True)
    assert alive.read_text() == "new"


def test_writers_of_one_file_never_share_what_they_stage(tmp_path):
    """As two containers can, whose process ids are the same."""
    path, both, parts = tmp_path / "file", threading.Barrier(2, timeout=60), set()

    def write(text: str) -> None:
        with replace_file(path) as staged:
            parts.add(staged)
            both.wait()
            staged.write_text(text)
            both.wait()
            assert staged.read_text() == text

    other = threading.Thread(target=write, args=["1" * 1000])
    other.start()
    write("2" * 10)
    other.join()
    assert len(parts) == 2
    assert path.read_text() in ("1" * 1000, "2" * 10)
    assert list(tmp_path.iterdir()) == [path]


def test_of_another_host_only_what_is_old_goes_unless_the_folder_is_held(tmp_path):
    folders = [tmp_path / f".x.{n}.0123abcd.tmp" for n in ("ffffffff", "00000000")]
    for folder in folders:
        folder.mkdir()
        (folder / "x").write_text("part")
    long_ago = folders[0].stat().st_mtime - ABANDONED_SECONDS - 1
    for path in (folders[0] / "x", folders[0]):
        os.utime(path, (long_ago, long_ago))
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [folders[1]]
    remove_leftovers(tmp_path, is_held=True)
    assert list(tmp_path.iterdir()) == []


def test_other_names_are_left_alone(tmp_path):
    names = [".x.tmp", "x.tmp", ".x.1234.tmp", ".secret", ".x.0123abcd.tmp", "cache"]
    for name in names:
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, is_held=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


WITHOUT_EXCHANGE = "import ctypes\nctypes.CDLL = lambda name: object()\n"
"""A system that cannot exchange two folders."""


def test_a_folder_that_a_kill_has_moved_aside_comes_back(tmp_path):
    path = tmp_path / "folder"
    with replace_folder(path) as staged:
        (staged / "a").write_text("old")
    script = [sys.executable, "-c", WITHOUT_EXCHANGE + KILLED, path]
    killed = subprocess.run(script, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    remove_leftovers(tmp_path)
    assert (path / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_library_may_replace_the_staged_file(tmp_path):
    """As safetensors does: a lock on the file itself would be lost."""
    with replace_file(tmp_path / "file") as staged:
        staged.with_name("other").write_text("new")
        staged.with_name("other").replace(staged)
        with replace_file(tmp_path / "another") as other:
            other.write_text("")
        assert staged.is_file()
    assert (tmp_path / "file").read_text() == "new"


def test_a_full_disk_names_the_file(tmp_path):
    def fail() -> None:
        with replace_file(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*/file'"):
        fail()

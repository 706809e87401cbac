"""Whole or not at all."""

import os

import pytest

from lit_sft.errors import InputError
from lit_sft.files import replace_file, replace_folder, require_writable


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

"""Which packages a config may name, and what an error may import: nothing."""

import importlib
import sys
from importlib.metadata import distributions
from importlib.util import find_spec

import pytest
from jsonargparse import ArgumentParser, _common

from lit_sft.cli.allowlist import (
    VARIABLE,
    WorkingFolder,
    explain_hidden,
    limit_imports,
    read_allowed_packages,
)
from lit_sft.cli.names import require_known_names
from lit_sft.cli.parser import find_nearest
from lit_sft.errors import InputError


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (None, None),
        ("", ["lightning", "lit_sft"]),
        (",", ["lightning", "lit_sft"]),
        (" my_task , torch.optim", ["lightning", "lit_sft", "my_task", "torch.optim"]),
    ],
)
def test_what_the_variable_allows(monkeypatch, text, allowed):
    monkeypatch.delenv(VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(VARIABLE, text)
    assert read_allowed_packages() == allowed


@pytest.mark.parametrize("text", ["my-task", "*", "lit_sft my_task", "jsonargparse"])
def test_what_is_no_list_of_packages_is_refused(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InputError, match=f"^{VARIABLE}: expected names of packages with commas"):
        limit_imports()


@pytest.mark.parametrize(
    "error",
    [
        "module 'named_in_an_error' has no attribute 'Task'",
        "given class_path 'named_in_an_error.Task':\n  Option 'x' is not accepted",
        "No module named 'named_in_an_error'",
    ],
)
def test_an_error_does_not_import_what_it_names(tmp_path, monkeypatch, error):
    (tmp_path / "named_in_an_error.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    find_nearest(error)
    assert not (tmp_path / "mark").exists()
    assert "named_in_an_error" not in sys.modules


def test_an_error_still_tells_what_was_meant():
    assert find_nearest("module 'json' has no attribute 'dump_'") == " Did you mean 'dump'?"
    assert find_nearest("module 'lit_sft' has no attribute 'GSM9K'") == " Did you mean 'GSM8K'?"
    assert find_nearest("- No module named 'lit_stf'\n") == " Did you mean 'lit_sft'?"
    with pytest.raises(InputError, match=r"lit_sft.GSM8K does not take 'paht'. Did you mean 'path"):
        require_known_names(["fit", "--data.task=lit_sft.GSM8K", "--data.task.paht=x"])


def test_a_file_that_an_installed_package_hides_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("json.py", "peft.py", "my_task.py"):
        (tmp_path / name).touch()
    assert explain_hidden("json.Task").startswith(" json.py is not looked at: ")
    assert explain_hidden("peft.tasks.Task").startswith(" peft.py is not looked at: ")
    assert explain_hidden("my_task.Task") == explain_hidden("yaml.Task") == ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a process that limits its imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(_common, "parsing_settings", dict(_common.parsing_settings))
    monkeypatch.setenv(VARIABLE, "task_of_folder")
    limit_imports()
    yield tmp_path
    for name in ("task_of_folder", "helper_of_folder", "late_of_folder"):
        sys.modules.pop(name, None)


def test_the_working_folder_serves_a_config_and_its_own_files(folder):
    (folder / "helper_of_folder.py").write_text("class Task: pass\nclass Other: pass\n")
    (folder / "task_of_folder.py").write_text(
        "import importlib\nfrom helper_of_folder import Task as Base\nclass Task(Base):\n"
        "    def load(self): return importlib.import_module('late_of_folder').ROWS\n"
    )
    (folder / "late_of_folder.py").write_text("ROWS = 3")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=type)
    task = parser.parse_args(["--task", "task_of_folder.Task"]).task
    assert task().load() == 3


def test_the_working_folder_serves_nobody_else(folder):
    (folder / "task_of_folder.py").touch()
    assert find_spec("task_of_folder") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("task_of_folder")
    (folder / "extra-1.0.dist-info").mkdir()
    (folder / "extra-1.0.dist-info" / "METADATA").write_text("Name: extra\nVersion: 1.0\n")
    assert "extra" not in [found.name for found in distributions()]


@pytest.mark.parametrize(
    ("place", "is_served"),
    [
        ("tasks/deep/own.py", True),
        (".venv/lib/python3.11/site-packages/peft/import_utils.py", False),
        ("usr/lib/python3/dist-packages/peft.py", False),
        ("../elsewhere.py", False),
    ],
)
def test_installed_packages_below_the_working_folder_are_not_its_files(folder, place, is_served):
    (folder / "hqq").mkdir()
    code = compile("from importlib.util import find_spec\nfound = find_spec('hqq')", place, "exec")
    names = {"__file__": str((folder / place).resolve()), "__name__": "asking"}
    exec(code, names)
    assert (names["found"] is not None) == is_served


def test_there_is_one_finder_and_it_is_the_last(folder):
    limit_imports()
    assert [isinstance(finder, WorkingFolder) for finder in sys.meta_path[-2:]] == [False, True]
    assert str(folder) not in sys.path

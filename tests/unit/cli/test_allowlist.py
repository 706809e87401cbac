"""Which packages a config may name, and what an error may import: nothing."""

import sys
from importlib import import_module

import pytest

from lit_sft.cli.allowlist import VARIABLE, explain_hidden, limit_imports, read_allowed_packages
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
        AttributeError("module 'named_in_an_error' has no attribute 'Task'", name="Task"),
        TypeError("given class_path 'named_in_an_error.Task':\n  Option 'x' is not accepted"),
        ModuleNotFoundError("No module named 'named_in_an_error'", name="named_in_an_error"),
    ],
)
def test_an_error_does_not_import_what_it_names(tmp_path, monkeypatch, error):
    (tmp_path / "named_in_an_error.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    find_nearest(error)
    assert not (tmp_path / "mark").exists()
    assert "named_in_an_error" not in sys.modules


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("json.dump_", "dump"),
        ("lit_sft.GSM9K", "GSM8K"),
        ("lit_stf.GSM8K", "lit_sft"),
    ],
)
def test_an_error_still_tells_what_was_meant(wrong, meant):
    module, name = wrong.split(".")
    with pytest.raises((AttributeError, ImportError)) as raised:
        getattr(import_module(module), name)
    chained = ValueError(wrong)  # as the parser does
    chained.__cause__ = raised.value
    assert find_nearest(chained) == f" Did you mean '{meant}'?"


def test_a_file_that_an_installed_package_hides_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("json.py", "peft.py", "my_task.py"):
        (tmp_path / name).touch()
    assert explain_hidden("json.Task").startswith(" json.py is not looked at: ")
    assert explain_hidden("peft.tasks.Task").startswith(" peft.py is not looked at: ")
    assert explain_hidden("my_task.Task") == explain_hidden("yaml.Task") == ""

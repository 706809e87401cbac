"""Which packages a config may name, and what an error may import: nothing."""

import sys

import pytest

from lit_sft.cli.allowlist import VARIABLE, explain_hidden, limit_imports, read_allowed_packages
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

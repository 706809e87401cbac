"""What the command line is built on: names of Lightning that it takes over, and its version."""

import importlib.metadata
import inspect
import subprocess
import sys

import pytest
from lightning.pytorch.cli import LightningCLI

import lit_sft
from lit_sft.__main__ import answer
from lit_sft.cli.app import SFTCommandLine


def test_the_methods_of_lightning_that_are_replaced_are_still_there():
    """One of another name would be left alone, and do again what it must not."""
    for name, method in vars(SFTCommandLine).items():
        # Lightning looks for some by the name of the command, and declares none.
        own = ("__init__", "_hold_folder", "fit", "after_fit")
        if inspect.isfunction(method) and name not in own:
            replaced = getattr(LightningCLI, name)
            given = inspect.signature(replaced).parameters
            assert list(inspect.signature(method).parameters) == list(given)


def test_the_parser_s_private_getter_is_still_there():
    assert list(inspect.signature(LightningCLI._get).parameters) == [
        "self",
        "config",
        "key",
        "default",
    ]


def test_the_version_is_that_of_the_installed_package():
    assert lit_sft.__version__ == importlib.metadata.version("lit-sft")
    code = "import sys, lit_sft; sys.exit('importlib.metadata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("before", [["--config", "fit"], ["--config=fit.yaml"]])
def test_a_typo_behind_a_config_and_the_command_is_told(capsys, before):
    assert not answer([*before, "fit", "--model.learning_rate=1"])
    with pytest.raises(SystemExit):
        answer([*before, "fit", "--model.lerning_rate=1"])
    assert "Did you mean 'model.learning_rate'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["fti"],
            "there is no command 'fti'; use one of fit, validate, test, predict, inspect",
        ),
        (
            ["--completion", "fsh"],
            "no completion for 'fsh'; use one of bash, zsh, fish. Did you",
        ),
    ],
)
def test_what_there_is_not_is_told_with_what_there_is(capsys, words, says):
    with pytest.raises(SystemExit) as stop:
        answer(words)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err

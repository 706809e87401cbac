"""What the command line is built on: names of Lightning that it takes over, and its version."""

import importlib.metadata
import inspect
import subprocess
import sys

from lightning.pytorch.cli import LightningCLI

import lit_sft
from lit_sft.cli.app import SFTCommandLine


def test_the_methods_of_lightning_that_are_replaced_are_still_there():
    """One of another name would be left alone, and do again what it must not."""
    for name, method in vars(SFTCommandLine).items():
        if inspect.isfunction(method) and name not in ("__init__", "_hold_folder"):
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

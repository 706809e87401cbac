"""Limit whose code a config may run, before any of it is imported."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_sft.errors import require

VARIABLE = "LIT_SFT_ALLOWED_PACKAGES"
CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
"""What a config may name a class by, at any place in it."""
CONFIG_ENDINGS = (".yaml", ".yml", ".json")


def require_allowed_packages(arguments: Sequence[str]) -> None:
    """Refuse a command line that names a class of a package that is not allowed.

    Naming a class imports its module, which runs its code. The environment variable
    `LIT_SFT_ALLOWED_PACKAGES` lists, with commas, the packages that may be named; without it, all.

    Args:
        arguments: Of the command line; the files that `--config` names are read too.

    Raises:
        InputError: With the class paths that are not allowed.
    """
    allowed = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
    if not allowed:
        return
    named = {path for value in _read_values(arguments) for path in _find_class_paths(value)}
    refused = sorted(path for path in named if path.split(".")[0] not in allowed)
    require(
        not refused,
        f"{', '.join(refused)} may not be imported: {VARIABLE} allows {', '.join(sorted(allowed))}",
    )


def _read_values(arguments: Sequence[str]) -> Iterator[Any]:
    """Yield the values of all options and the contents of all configs."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for word in words:
        try:
            yield yaml.safe_load(word)
        except yaml.YAMLError:
            continue  # the parser will say what is wrong with it


def _find_class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _find_class_paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _find_class_paths(item)
    elif isinstance(value, str) and value.endswith(CONFIG_ENDINGS):
        try:  # a config may stand in for any part of another
            yield from _find_class_paths(yaml.safe_load(Path(value).read_text(encoding="utf-8")))
        except (yaml.YAMLError, OSError, UnicodeDecodeError):
            return
    elif isinstance(value, str) and CLASS_PATH.fullmatch(value):
        yield value

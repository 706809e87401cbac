"""Limit what a config may import: whose code, and where it is found.

Nothing is searched for in configs, which have many ways to say the same. The parser asks before it
imports a path that came as a value, and once more, when it has the object, where that is defined.
"""

import os
import re
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from lit_sft.errors import InputError

VARIABLE = "LIT_SFT_ALLOWED_PACKAGES"
OWN = ("lightning", "lit_sft")
"""Packages that are always allowed: a run consists of them."""
REFUSAL = re.compile(r"Importing '([\w.]+)' is not allowed")
"""What jsonargparse says of a path that it was told not to import."""


def limit_imports() -> None:
    """Let this process import what a config may name, and nothing else.

    The environment variable `LIT_SFT_ALLOWED_PACKAGES` lists, with commas, the packages that may
    be named beside `lit_sft` and `lightning`; where it is not set, all may. The working folder is
    searched last, so that no file in it stands in for an installed package; and where there is a
    list, only if it holds a package of that list.

    Raises:
        InputError: If the variable holds something else than names.
    """
    from jsonargparse import set_parsing_settings

    allowed, here = read_allowed_packages(), str(Path.cwd())  # the parser changes folders
    if allowed is not None:
        try:
            set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
        except ValueError as error:
            raise InputError(
                f"{VARIABLE}: expected names of packages with commas between, got "
                f"{os.environ[VARIABLE]!r} ({error})"
            ) from error
    packages = {name.split(".")[0] for name in allowed or ()}
    is_searched = allowed is None or any(PathFinder.find_spec(name, [here]) for name in packages)
    if is_searched and here not in sys.path:
        sys.path.append(here)


def read_allowed_packages() -> list[str] | None:
    """Return the packages whose classes a config may name, or None for all."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    return sorted({*OWN, *(name.strip() for name in text.split(","))} - {""})


def explain_refusal(message: str) -> str | None:
    """Return what was refused in one line, or None if an error of the parser is another one."""
    refused = REFUSAL.search(message)
    if refused is None:
        return None
    return (
        f"{refused[1]} may not be imported: {VARIABLE} allows "
        f"{', '.join(read_allowed_packages() or ())}"
    )


def explain_hidden(path: str) -> str:
    """Return a sentence on a file of the working folder that a dotted path does not reach.

    It has the name of an installed package, or of a module of Python, which is found first. The
    text is empty where there is no such file.
    """
    name = path.split(".")[0]
    try:
        ours, found = PathFinder.find_spec(name, [str(Path.cwd())]), find_spec(name)
    except (ImportError, ValueError):
        return ""
    if ours is None or ours.origin is None or found is None or found.origin == ours.origin:
        return ""
    return (
        f" {os.path.relpath(ours.origin)} is not looked at: an installed package or a module of "
        "Python has its name. Give it another."
    )

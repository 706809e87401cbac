"""Limit what a config may import: whose code, and where it is found.

Nothing is searched for in configs, which have many ways to say the same. The parser asks before it
imports a path that came as a value, and once more, when it has the object, where that is defined.
"""

import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Collection, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, ModuleType

from lit_sft.errors import InputError

VARIABLE = "LIT_SFT_ALLOWED_PACKAGES"
OWN = ("lightning", "lit_sft")
"""Packages that are always allowed: a run consists of them."""
REFUSAL = re.compile(r"Importing '([\w.]+)' is not allowed")
"""What jsonargparse says of a path that it was told not to import."""
PARSER, RESOLVER = "jsonargparse", "import_object"
"""The parser's package, and its function that imports what a value names."""
IMPORTERS = ("importlib", "_frozen_importlib", "_frozen_importlib_external")
"""Python's own packages between who asks for a module and a finder."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages, which may lie below the working folder, as in `.venv`."""
NOT_OF_USER = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))


def limit_imports() -> None:
    """Let this process import what a config may name, and nothing else.

    The environment variable `LIT_SFT_ALLOWED_PACKAGES` lists, with commas, the packages that may
    be named beside `lit_sft` and `lightning`; where it is not set, all may. The working folder is
    searched last, and only for what a config or a file of that folder names, see `WorkingFolder`.

    Raises:
        InputError: If the variable holds something else than names.
    """
    from jsonargparse import set_parsing_settings

    allowed = read_allowed_packages()
    if allowed is not None:
        try:
            set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
        except ValueError as error:
            raise InputError(
                f"{VARIABLE}: expected names of packages with commas between, got "
                f"{os.environ[VARIABLE]!r} ({error})"
            ) from error
    packages = None if allowed is None else {name.split(".")[0] for name in allowed}
    others = [finder for finder in sys.meta_path if not isinstance(finder, WorkingFolder)]
    sys.meta_path[:] = [*others, WorkingFolder(Path.cwd(), packages)]


class WorkingFolder:
    """Finds the modules of a folder, where nothing else has one of the name, for its user alone.

    An entry of `sys.path` would serve whoever asks: a library that tries an optional package, and
    gets a folder of that name, or looks for the plug-ins of installed packages, and runs a file
    that claims to be one. This is asked last, answers what a config names, or a file of the folder
    imports, and knows of no installed packages.

    Args:
        folder: Absolute; the parser changes to others while it reads a config.
        packages: That a config may name, or None for all.
    """

    def __init__(self, folder: Path, packages: Collection[str] | None) -> None:
        self.folder = folder
        self.packages = packages

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module lies, or None. Python calls it; its packages find their parts."""
        if path is not None or not self._is_for_user(name, inspect.currentframe()):
            return None
        return PathFinder.find_spec(name, [str(self.folder)])

    def _is_for_user(self, name: str, frame: FrameType | None) -> bool:
        """Return whether an import is one of a config, or of a file of the folder."""
        frame = frame.f_back if frame else None
        while frame and _get_package(frame) in IMPORTERS:
            frame = frame.f_back
        if frame is None:
            return False
        if _get_package(frame) == PARSER and frame.f_code.co_name == RESOLVER:
            return self.packages is None or name in self.packages
        file = Path(str(frame.f_globals.get("__file__") or frame.f_code.co_filename))
        return (
            file.is_relative_to(self.folder)
            and INSTALLED.isdisjoint(file.relative_to(self.folder).parts)
            and not any(file.is_relative_to(place) for place in NOT_OF_USER)
        )


def _get_package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


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

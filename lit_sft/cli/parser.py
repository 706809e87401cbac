"""The argument parser: jsonargparse's, whose errors are short and name what was probably meant."""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

import lit_sft
from lit_sft.cli.allowlist import explain_hidden, explain_refusal
from lit_sft.errors import suggest

COMMANDS = ("fit", "validate", "test", "predict", "inspect")


class Parser(ArgumentParser):
    """Refuses abbreviated options, as a misspelling may look like one; explains in a few lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a message with the nearest right name, and exit with status 2."""
        if refusal := explain_refusal(message):
            print(f"error: {refusal}", file=sys.stderr)
            raise SystemExit(2)
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [action.dest for action in parser._actions]
        hint = find_nearest(message, known)
        text = f"{message.strip().rstrip('.')}.{hint}" if hint else message.strip()
        command = [word for word in sys.argv[1:2] if word in COMMANDS]
        print(f"error: {text}", file=sys.stderr)
        print(f"every option: {' '.join(['lit-sft', *command])} --help", file=sys.stderr)
        raise SystemExit(2)


def find_nearest(message: str, options: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the name that an error of jsonargparse complains about.

    Args:
        message: The error's text.
        options: The names that the parser knows.
    """
    if wrong := re.search(r"unrecognized arguments: --(\S+)|not accept option '([^']+)'", message):
        return suggest((wrong[1] or wrong[2]).split("=")[0], options)
    if wrong := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return suggest(wrong[2], _public_names(wrong[1])) + explain_hidden(wrong[1])
    if wrong := re.search(
        r"given class_path '([\w.]+)':\s+Option '(\w+)' is not accepted", message
    ):
        return suggest(wrong[2], _parameters(wrong[1]))
    if wrong := re.search(r"Option '(\w+)' is not accepted", message):
        return suggest(wrong[1], _parameters_of_package())
    if wrong := re.search(r"No module named '([\w.]+)'", message):
        known = ["lit_sft", "lightning.pytorch", *sys.modules]
        return suggest(wrong[1], known) + explain_hidden(wrong[1])
    if wrong := re.search(r"Literal\[(.+)\]\. Got value: (\S+)", message):
        return suggest(wrong[2], re.findall(r"'([^']+)'", wrong[1]))
    if wrong := re.search(r"invalid choice: '([^']+)' \(choose from (.+)\)", message):
        return suggest(wrong[1], re.findall(r"'([^']+)'", wrong[2]))
    return ""


def _public_names(module: str) -> list[str]:
    found = _names_of(module)
    return [*found.get("__all__", ()), *found]


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    is_ours = module == "lit_sft" and name in lit_sft.__all__
    found: Any = getattr(lit_sft, name) if is_ours else _names_of(module).get(name)
    try:
        return list(inspect.signature(found).parameters)
    except (TypeError, ValueError):  # a constant, or a type without a signature
        return []


def _names_of(module: str) -> Mapping[str, Any]:
    """Return what an imported module holds; an error may name one that must not be imported."""
    return getattr(sys.modules.get(module), "__dict__", {})


def _parameters_of_package() -> list[str]:
    return [name for public in lit_sft.__all__ for name in _parameters(f"lit_sft.{public}")]

"""The argument parser: jsonargparse's, whose errors are short and name what was probably meant."""

import re
import sys
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_sft.cli.allowlist import explain_hidden, explain_refusal
from lit_sft.errors import suggest

LACKED = re.compile(
    r"(module '(?P<module>[\w.]+)' has no attribute|No module named) '(?P<name>[\w.]+)'"
)
"""Python's own words; of what is tried for a type of several kinds, the parser keeps only those."""


class Parser(ArgumentParser):
    """Refuses abbreviated options, as a misspelling may look like one; explains in a few lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a message with the nearest right name, and exit with status 2."""
        if refusal := explain_refusal(message):
            print(f"error: {refusal}", file=sys.stderr)
            raise SystemExit(2)
        hint = find_nearest(message)
        text = f"{message.strip().rstrip('.')}.{hint}" if hint else message.strip()
        command = [word for word in sys.argv[1:2] if not word.startswith("-")]
        print(f"error: {text}", file=sys.stderr)
        print(f"every option: {' '.join(['lit-sft', *command])} --help", file=sys.stderr)
        raise SystemExit(2)


def find_nearest(message: str) -> str:
    """Return " Did you mean 'x'?" for what an import lacked, or an empty string.

    Other names are looked at before, see `lit_sft.cli.names`, and so are these where source tells
    them. Nothing is imported: a message may name what must not be.
    """
    if not (wrong := LACKED.search(message)):
        return ""
    module, name = wrong["module"], wrong["name"]
    if module is None:
        return suggest(name, ["lit_sft", "lightning.pytorch", *sys.modules]) + explain_hidden(name)
    found = getattr(sys.modules.get(module), "__dict__", {})
    return suggest(name, [*found.get("__all__", ()), *found]) + explain_hidden(module)

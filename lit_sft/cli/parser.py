"""The argument parser: jsonargparse's, whose errors are short and name what was probably meant."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_sft.cli.allowlist import explain_hidden, explain_refusal
from lit_sft.errors import InputError, find_origin, suggest

LACKED = re.compile(
    r"(module '(?P<module>[\w.]+)' has no attribute|No module named) '(?P<name>[\w.]+)'"
)
"""Python's own words; of what is tried for a type of several kinds, the parser keeps only those."""
PACKAGE = Path(__file__).parents[1]


class Parser(ArgumentParser):
    """Refuses abbreviated options, as a misspelling may look like one; explains in a few lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        """Parse a command line, in which a pattern is a text."""
        words = sys.argv[1:] if args is None else args
        return super().parse_args(quote_patterns(words), *more, **kwargs)

    def instantiate(self, *args: Any, instantiators: Any = None, **kwargs: Any) -> Any:
        """Build the classes of a config; what one of them refuses is its user's mistake."""
        failures: list[Exception] = []

        def keep_failure(made: Callable[..., Any], *taken: Any, **named: Any) -> Any:
            try:
                return build(made, *taken, **named)
            except Exception as error:
                failures.append(error)
                raise

        ours = [*(instantiators or ()), (keep_failure, object, True)]
        try:
            return super().instantiate(*args, instantiators=ours, **kwargs)
        except ValueError:
            if failures:  # in place of all that was tried for a type of several kinds
                raise failures[0]  # noqa: B904 (it has a cause of its own)
            raise

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


def quote_patterns(words: Sequence[str]) -> list[str]:
    """Return a command line with `regex: PATTERN` as JSON: YAML would take `#` for a comment."""
    quoted = []
    for before, word in zip(["", *words], words, strict=False):
        option, value = ("", word) if before.endswith(".grader") else word.partition("=")[::2]
        is_pattern = value.startswith("regex:") and (before + option).endswith(".grader")
        start = f"{option}=" if option else ""
        pattern = json.dumps({"regex": value.removeprefix("regex:").strip()})
        quoted.append(f"{start}{pattern}" if is_pattern else word)
    return quoted


def build(made: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return an object of a class that a config names.

    Args:
        made: The class.
        args: What it takes.
        kwargs: Likewise; those that a config has under `dict_kwargs` are checked by nobody before.

    Raises:
        InputError: If the class does not take them, or lacks a package. What fails in the code of
            this package is its own fault, and passes.
    """
    try:
        return made(*args, **kwargs)
    except InputError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        origin = find_origin(error)
        is_refused_at_once = origin == Path(__file__)  # it does not take these arguments
        if not is_refused_at_once and origin.is_relative_to(PACKAGE):
            raise
        remedy = (
            "install what it lacks" if isinstance(error, ImportError) else "change its arguments"
        )
        reason = " ".join(str(error).split())
        raise InputError(
            f"{made.__module__}.{made.__qualname__} cannot be built ({type(error).__name__}: "
            f"{reason:.300}); {remedy}, or name another class"
        ) from error


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

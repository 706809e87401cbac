"""The argument parser: jsonargparse's, whose errors are short and name what was probably meant."""

import sys
from types import ModuleType
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_sft.cli.allowlist import explain_hidden, explain_refusal
from lit_sft.errors import suggest


class Parser(ArgumentParser):
    """Refuses abbreviated options, as a misspelling may look like one; explains in a few lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a message with the nearest right name, and exit with status 2."""
        if refusal := explain_refusal(message):
            print(f"error: {refusal}", file=sys.stderr)
            raise SystemExit(2)
        hint = find_nearest(ex)
        text = f"{message.strip().rstrip('.')}.{hint}" if hint else message.strip()
        command = [word for word in sys.argv[1:2] if not word.startswith("-")]
        print(f"error: {text}", file=sys.stderr)
        print(f"every option: {' '.join(['lit-sft', *command])} --help", file=sys.stderr)
        raise SystemExit(2)


def find_nearest(error: BaseException | None) -> str:
    """Return " Did you mean 'x'?" for what an import lacked that is behind an error, or "".

    Other names are looked at before, see `lit_sft.cli.names`, and so are these where source tells
    them. Nothing is imported here.
    """
    while error is not None:
        name = getattr(error, "name", None) or ""
        if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
            known = {*dir(error.obj), *vars(error.obj).get("__all__", ())}
            return suggest(name, sorted(known)) + explain_hidden(error.obj.__name__)
        if isinstance(error, ModuleNotFoundError):
            return suggest(name, ["lit_sft", "lightning.pytorch", *sys.modules]) + explain_hidden(
                name
            )
        error = error.__cause__ or error.__context__
    return ""

"""Whether a value may be of a plain type, as that is written: number, text, list, mapping."""

import ast
from collections.abc import Callable
from typing import Any

from lit_sft.cli.signatures import Parameter

CONFIG_ENDINGS = (".yaml", ".yml", ".json")
SWITCHES = {"true", "false", "yes", "no", "on", "off"}


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, or a text that Python reads as one, such as `1e-4`."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _is_number),
    "float": ("a number", _is_number),
    "bool": ("true or false", lambda x: isinstance(x, int) or str(x).lower() in SWITCHES),
    "str": ("a text", lambda x: not isinstance(x, dict | list)),
    "dict": ("names with values, such as {name: value}", lambda x: isinstance(x, dict)),
    "list": ("a list, such as [one, two]", lambda x: isinstance(x, list)),
    "None": ("null", lambda x: x == "null"),
}
"""By the name of a type, how a user writes it, and whether a value of YAML may be one."""


def explain_misfit(parameter: Parameter, value: Any, is_item: bool = False) -> str:
    """Return what was expected and what came, or an empty string where that is not certain.

    Args:
        parameter: With its type.
        value: As YAML reads it. Null passes, as does a text that names a file of options.
        is_item: Whether it may be one of a list, as behind `--option+=`.
    """
    kinds = _list_kinds(parameter.annotation)
    is_file = isinstance(value, str) and value.endswith(CONFIG_ENDINGS)
    if kinds is None or value is None or is_file or (is_item and "list" in kinds):
        return ""
    fits = [KINDS[kind][1](value) if kind in KINDS else str(value) == kind for kind in kinds]
    if any(fits) or not kinds:
        return ""
    words = [KINDS[kind][0] if kind in KINDS else kind for kind in kinds]
    return f"expected {' or '.join(words)}, got {value!r:.60}"


def _list_kinds(annotation: ast.expr | None) -> list[str] | None:
    """Return the kinds of a union, and the words of its literals; None where one is another."""
    if isinstance(annotation, ast.BinOp):
        sides = [_list_kinds(annotation.left), _list_kinds(annotation.right)]
        return None if None in sides else [kind for side in sides for kind in side or ()]
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return ["None"]
    if isinstance(annotation, ast.Subscript):
        if ast.unparse(annotation.value) == "Literal":
            inside = annotation.slice
            words = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return [str(x.value) for x in words if isinstance(x, ast.Constant)]
        annotation = annotation.value
    is_known = isinstance(annotation, ast.Name) and annotation.id in KINDS
    return [annotation.id] if is_known and isinstance(annotation, ast.Name) else None

"""A run's config by dotted names, beside the defaults that the signatures declare."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lit_sft.cli.sections import Options
from lit_sft.cli.signatures import Parameter, find_class, find_parameters
from lit_sft.report.facts import NONE, RunFacts

UNKNOWN, REQUIRED = object(), object()
"""For a default that source does not tell, and for an option that has none."""
ALWAYS_SET = {"trainer.default_root_dir", "config", "ckpt_path"}
"""Where a run lies is no difference."""


class Setting(NamedTuple):
    """An option of a run."""

    name: str
    value: str
    is_changed: bool
    """Whether it is known to differ from its default, or has none."""


def list_settings(config: Mapping[str, object]) -> list[Setting]:
    """Return the options of a config, and whether each differs from its default."""
    defaults = {
        name: _evaluate(parameter.default) for name, parameter in Options("fit").list_all()
    } | {"trainer.callbacks": UNKNOWN}
    return [
        Setting(name, _show(value), _differs(value, defaults.get(name, default)))
        for name, value, default in _flatten(config)
    ]


def compare_settings(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Return the options in which runs differ, with the value of each; a dash where it has none."""
    tables = [{name: _show(value) for name, value, _ in _flatten(x.config)} for x in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name, NONE) for table in tables]) for name in names]
    return [(x, values) for x, values in rows if len(set(values)) > 1 and x not in ALWAYS_SET]


def _flatten(
    value: object, name: str = "", default: object = UNKNOWN
) -> Iterator[tuple[str, object, object]]:
    """Yield the leaves of a config by dotted names, with the defaults of the classes that it names.

    Those of the run's own sections are not known here.
    """
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        yield name, value["class_path"], REQUIRED
        known = find_parameters(find_class(value["class_path"])) or {}
        given = value.get("init_args")
        for key, inner in given.items() if isinstance(given, dict) else ():
            parameter = known.get(key)
            told = _evaluate(parameter.default) if isinstance(parameter, Parameter) else UNKNOWN
            yield from _flatten(inner, f"{name}.{key}", told)
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flatten(item, f"{name}[{number}]")
    else:
        yield name, value, default


def _evaluate(default: ast.expr | None) -> object:
    if default is None:
        return REQUIRED
    try:
        return ast.literal_eval(default)
    except ValueError:
        return UNKNOWN


def _differs(value: object, default: object) -> bool:
    if default is UNKNOWN:
        return False
    plain = [list(x) if isinstance(x, tuple) else x for x in (value, default)]
    return bool(plain[0] != plain[1])


def _show(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)

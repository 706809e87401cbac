"""Find a misspelt name in a command line and its configs before anything heavy is imported.

The names are those that the signatures declare, see `lit_sft.cli.signatures`. What is not certain
to be wrong passes; the parser, which imports what it checks, has the last word.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lit_sft.cli.allowlist import explain_hidden
from lit_sft.cli.plain_values import CONFIG_ENDINGS, explain_misfit
from lit_sft.cli.sections import RETIRED, Options, find_fields, require_retired_on
from lit_sft.cli.signatures import (
    Parameter,
    find_choices,
    find_class,
    find_classes,
    find_parameters,
    find_type_names,
)
from lit_sft.cli.sources import explain_missing
from lit_sft.errors import InputError, require, suggest

COMMANDS_OF_TRAINER = ("fit", "validate", "test", "predict")
CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}
"""What stands for a class in a config."""
CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
OPTION = re.compile(r"-[A-Za-z-]\S*$")
"""A word that is no value: `-1` and `-` are values."""
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def require_known_names(arguments: Sequence[str]) -> None:
    """Refuse options, keys, classes and arguments of classes that do not exist.

    Args:
        arguments: Of the command line, the command first.

    Raises:
        InputError: With the nearest name that exists; also if a config cannot be read.
    """
    command, *words = arguments
    if any(word.split("=")[0].endswith(("-h", "help")) for word in words):
        return
    names = _Names(command)
    for option, value, written in _read_flags(words):
        if not option.startswith("-"):
            hint = f" Did you mean '--config {option}'?" if option.endswith(CONFIG_ENDINGS) else ""
            raise InputError(f"unrecognized arguments: {written}.{hint}".removesuffix("."))
        if option in ("-c", "--config"):
            names.check_config(value)
        elif option.startswith("--") and not option.startswith("--print_"):
            names.check_flag(option[2:].removesuffix("+"), value, written)


def _read_flags(words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each option, its value, and both as they were written."""
    rest = list(words)
    while rest and rest[0] != "--":
        written = rest.pop(0)
        option, equals, value = written.partition("=")
        if option.startswith("-") and not equals and rest and not OPTION.match(rest[0]):
            value = rest.pop(0)
            written += f" {value}"
        yield option, value, written


def _read_config(text: str) -> Any:
    """Return what a YAML file holds, or a mapping that stands in its place."""
    path = Path(text).expanduser()
    try:
        is_file = path.is_file()
        content = path.read_text(encoding="utf-8") if is_file else text
        config = yaml.load(content, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"--config {text}{place}: {error.problem}") from error
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the parser will say what is wrong with it
    if not isinstance(config, dict) and text not in ("", "-"):
        require(is_file, f"--config: there is no file {text!r}")
        raise InputError(f"--config {text}: expected options such as 'model: {{...}}'")
    return config


class _Names:
    """The names that a command knows, and the class that was last named at each place.

    Args:
        command: `inspect` looks at the data alone.
    """

    def __init__(self, command: str) -> None:
        self.options = Options(command)
        self.classes: dict[str, str] = {}

    def check_config(self, text: str) -> None:
        """Check the keys of a config."""
        config = _read_config(text)
        if not isinstance(config, dict) or config.keys() & set(COMMANDS_OF_TRAINER):
            return
        for key, value in config.items():
            is_section = self.options.sections.get(str(key)) is not None
            require(
                not is_section or value is None or isinstance(value, dict),
                f"--config {text}: {key} must hold options by name, got {value!r:.60}",
            )
            try:
                self._check(str(key), value)
            except _UnknownOptionError as error:
                self._refuse(f"--config {text}: there is no option '{error}'", error)

    def check_flag(self, name: str, value: Any, written: str) -> None:
        """Check an option of the command line, and its value where that names something."""
        with contextlib.suppress(yaml.YAMLError):
            value = yaml.load(value, Loader)
        try:
            self._check(name, value, is_flag=True)
        except _UnknownOptionError as error:
            self._refuse(f"unrecognized arguments: {written}", error)

    def _refuse(self, text: str, unknown: Exception) -> NoReturn:
        hint = suggest(str(unknown), [*self.options.names, *dict(self.options.list_all())])
        raise InputError(f"{text}.{hint}" if hint else text) from unknown

    def _check(self, name: str, value: Any, is_flag: bool = False) -> None:
        section, *inner = name.split(".")
        value = _nest(inner, value)
        if section not in self.options.names:
            raise _UnknownOptionError(_deepest(section, value))
        if section in self.options.of_run:
            self._check_value(section, self.options.of_run[section], value, is_flag)
        self._check_fields(section, self.options.sections.get(section), value, is_flag)

    def _check_fields(
        self, where: str, known: Mapping[str, Parameter] | None, value: Any, is_flag: bool
    ) -> None:
        if known is None:
            return
        for name, item in _items(value):
            if f"{where}.{name}" in RETIRED:
                require_retired_on(f"{where}.{name}", item)
                continue
            if name not in known:
                raise _UnknownOptionError(_deepest(f"{where}.{name}", item))
            self._check_value(f"{where}.{name}", known[name], item, is_flag)

    def _check_value(self, where: str, parameter: Parameter, value: Any, is_flag: bool) -> None:
        choices = find_choices(parameter)
        if choices and isinstance(value, str | int):
            known = ", ".join(choices)
            word = json.dumps(value) if isinstance(value, bool) else str(value)
            require(
                word in choices,
                f"{where} must be one of {known}, got {value!r}.{suggest(word, choices)}",
            )
        classes, types = find_classes(parameter), find_type_names(parameter)
        if misfit := explain_misfit(parameter, value, is_item=is_flag):
            raise InputError(f"{where}: {misfit}")
        if not classes:
            return
        if fields := find_fields(parameter):
            is_file = isinstance(value, str) and value.endswith(CONFIG_ENDINGS)
            require(
                value is None or is_file or isinstance(value, dict),
                f"{where} takes {', '.join(fields)} by name, got {value!r:.60}",
            )
            self._check_fields(where, fields, value, is_flag)
        elif isinstance(value, list):
            for item in value:
                self._check_value(where, parameter, item, is_flag)
        elif isinstance(value, str) and "str" not in types:
            self._check_class(where, value)
        elif any(suggest(name, CLASS_KEYS) for name, _ in _items(value)):
            wrong = ", ".join(name for name, _ in _items(value) if name not in CLASS_KEYS)
            require(not wrong, f"{where}: a class has class_path and init_args, not {wrong}")
            if isinstance(value.get("class_path"), str):
                self._check_class(where, value["class_path"])
            self._check_arguments(where, value.get("init_args"), is_flag)
        elif is_flag:
            self._check_arguments(where, value, is_flag)
        elif {"dict", "Mapping"} & types:
            for name, item in _items(value):
                self._check_value(f"{where}.{name}", parameter, item, is_flag)

    def _check_class(self, where: str, path: str) -> None:
        inner = [place for place in self.classes if place.startswith(f"{where}.")]
        for place in inner:
            del self.classes[place]
        self.classes[where] = path
        is_dotted = CLASS_PATH.fullmatch(path) and not path.endswith(CONFIG_ENDINGS)
        missing = explain_missing(path) if is_dotted else None
        require(missing is None, f"{where}: {missing}{explain_hidden(path)}")

    def _check_arguments(self, where: str, value: Any, is_flag: bool) -> None:
        path = self.classes.get(where, "")
        known = find_parameters(find_class(path))
        if known is None:
            return
        for name, item in _items(value):
            if name not in known:
                hint = suggest(name, known) or f" It takes {', '.join(known) or 'nothing'}."
                raise InputError(f"{where}: {path} does not take {name!r}.{hint}")
            self._check_value(f"{where}.{name}", known[name], item, is_flag)


class _UnknownOptionError(LookupError):
    """Its text is the option's name."""


def _nest(names: Sequence[str], value: Any) -> Any:
    for name in reversed(names):
        value = {name: value}
    return value


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a mapping; `a.b: c` stands for `a: {b: c}`."""
    for key, item in value.items() if isinstance(value, dict) else ():
        name, *inner = str(key).split(".")
        yield name, _nest(inner, item)


def _deepest(name: str, value: Any) -> str:
    """Return the dotted name of the first value inside an option."""
    for inner, item in _items(value):
        return _deepest(f"{name}.{inner}", item)
    return name

"""The help of a command, a section or a class: read from the sources, so that it comes at once."""

import ast
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from lit_sft.cli.sections import INSPECT, SECTIONS, SEEDED, TOOLS, Options, find_fields, list_fields
from lit_sft.cli.signatures import (
    Parameter,
    find_choices,
    find_class,
    find_flags,
    find_parameters,
)

OWN = ("lit_sft.", "lightning.")
"""What is told of a class of these packages; of another, the parser tells, which imports it."""
ABOUT = {
    "config": "A run's YAML file; of several, and of options behind them, the last one wins.",
    "ckpt_path": "What to go on from, or to measure: last, best, auto (last, if any) or a file.",
    "seed_everything": "Of all that is drawn at random, 0 by default; true draws it, too.",
    "weights_only": "Not looked at: no checkpoint can run code.",
    "print_config": "Print the config that the command line makes, and stop.",
}
"""Of options that the libraries explain at length, or as they are without this package."""
PIPE_WIDTH = 120
"""Characters of a line where no terminal says how many it has."""
LIBRARY_DEFAULT = re.compile(r"\s*Default: ``[^`]*``\.?")


def print_help(arguments: Sequence[str], about: str) -> bool:
    """Print the help that a command line asks for; return whether it did, and source could tell.

    Args:
        arguments: Of the command line, the command first.
        about: What the command does.
    """
    command, *words = arguments
    for word, following in pairwise([*words, "-"]):
        option, _, value = word.partition("=")
        if option in ("-h", "--help"):
            lines = _explain_command(command, about)
        elif option.startswith("--") and option.endswith(".help"):
            path = value or ("" if following.startswith("-") else following)
            lines = _explain_place(command, option[2:].removesuffix(".help"), path)
        else:
            continue
        text = "".join(f"{line}\n" for line in lines)
        print(text, end="")
        return bool(text)
    return False


def _explain_command(command: str, about: str) -> Iterator[str]:
    options = Options(command)
    if command in TOOLS:
        yield f"usage: lit-sft {command} {TOOLS[command][0]} [--option VALUE ...]\n\n{about}\n"
        yield from _list_lines(options.of_run.items())
        return
    yield f"usage: lit-sft {command} --config FILE [--any.option VALUE ...]"
    yield f"\n{about}"
    for section in ("model", "data", "checkpoint"):
        if parameters := options.sections.get(section):
            yield f"\n{section}: {_summarise(SECTIONS[section])}"
            yield from _list_lines(list_fields(section, parameters))
    yield "\nrun:"
    of_run = options.of_run if command != "inspect" else dict(find_flags(INSPECT))
    of_run |= {"print_config": Parameter(None, "", ast.Constant(None))}
    yield from _list_lines(of_run.items())
    if trainer := options.sections.get("trainer"):
        yield f"\ntrainer: the {len(trainer)} options of Lightning's, such as --trainer.max_steps"
    else:
        yield "\nThe other options of fit are taken too, and model.base_model is looked at."
    places = ", ".join(f"--{section}.help" for section in options.sections)
    yield f"\nIn full:     lit-sft {command} {places}"
    yield f"Of a class:  lit-sft {command} --data.task.help lit_sft.ChatFile"


def _list_lines(options: Iterable[tuple[str, Parameter]]) -> Iterator[str]:
    """Yield a line for each option: its name, its default, and how its explanation begins."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    for name, parameter in options:
        sentence = re.split(r"[.;] ", _tell_about(name, parameter))[0].removesuffix(".")
        line = f"  --{name:<33} {_tell_default(name, parameter):<18} {sentence}"
        yield line if len(line) <= width else f"{line[: width - 1].rpartition(' ')[0]}…"


def _explain_place(command: str, place: str, path: str) -> Iterator[str]:
    """Yield the help of a section, of an option, or of a class in the place of an option."""
    options = Options(command)
    known = dict.fromkeys(options.sections) | dict(options.list_all())
    if place not in known:
        return
    if path:
        taken = find_parameters(find_class(path)) if path.startswith(OWN) else None
        if taken is None:
            return
        yield f"{path}: {_summarise(path)}"
        listed = dict(list_fields(place, taken))
    else:
        if place in SECTIONS:
            yield f"{place}: {_summarise(SECTIONS[place])}".rstrip(": ")
        listed = {x: y for x, y in known.items() if y and f"{x}.".startswith(f"{place}.")}
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    for name, parameter in listed.items():
        about, default = _tell_about(name, parameter), _tell_default(name, parameter)
        indent = " " * 6
        yield f"\n  --{name} {_tell_type(parameter)}".rstrip()
        text = f"{about} ({default})" if default else about
        yield textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)


def _summarise(path: str) -> str:
    """Return the first paragraph of a class's explanation."""
    declared = find_class(path)
    about = ast.get_docstring(declared.node) if declared else None
    return " ".join((about or "").split("\n\n")[0].split())


def _tell_about(name: str, parameter: Parameter) -> str:
    return ABOUT.get(name) or LIBRARY_DEFAULT.sub("", parameter.about).replace("``", "`")


def _tell_default(name: str, parameter: Parameter) -> str:
    """Return the default as it would be written in a config; empty where it is computed."""
    if name in SEEDED:
        return "seed_everything"
    if parameter.default is None:
        return "required"
    try:
        value = ast.literal_eval(parameter.default)
    except ValueError:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _tell_type(parameter: Parameter) -> str:
    if find_fields(parameter):
        return ""
    choices = find_choices(parameter)
    if choices:
        return "|".join(choices)
    return ast.unparse(parameter.annotation) if parameter.annotation else ""

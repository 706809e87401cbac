"""`lit-sft inspect`: parse what `fit` parses, look at the data alone, and write a report."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from lit_sft.cli import sections
from lit_sft.cli.allowlist import limit_imports
from lit_sft.cli.parser import Parser
from lit_sft.data.options import DataOptions
from lit_sft.errors import InputError, require
from lit_sft.files import replace_file, require_writable
from lit_sft.inspect.collect import Choice, inspect_data
from lit_sft.inspect.row_report import Report
from lit_sft.inspect.writers import print_report, render_page


class Options(NamedTuple):
    """What is asked for beside the data."""

    choice: Choice
    html: str | None
    as_json: bool


def run(arguments: Sequence[str]) -> int:
    """Run `lit-sft inspect`, and return its exit status: 1 if a row fails, 2 for a wrong input.

    Args:
        arguments: Those after the program's name, `inspect` included.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        limit_imports()
        parsed = parse(arguments[1:])
        with contextlib.redirect_stdout(sys.stderr):  # a task may print; stdout is the report's
            data, options = instantiate(parsed)
            report = inspect_data(data, options.choice)
        _write(report, options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if report.num_failures else 0


def parse(arguments: Sequence[str]) -> object:
    """Return the options by name.

    Raises:
        InputError: If they are wrong; `SystemExit` where the parser says so itself.
    """
    parsed = make_parser().parse_args(list(arguments))
    require(parsed.row is None or parsed.random is None, "--row and --random exclude each other")
    for name in ("row", "random"):
        value = getattr(parsed, name)
        require(value is None or value >= 0, f"--{name} must not be negative, got {value}")
    if parsed.html:
        require(not Path(parsed.html).is_dir(), f"--html: {parsed.html!r} is a folder; name a file")
        require_writable(Path(parsed.html).parent, "--html")
    if parsed.data.tokenizer is None:
        parsed.data.tokenizer = parsed.model.get("base_model")
    return parsed


def instantiate(parsed: Any) -> tuple[DataOptions, Options]:
    """Return the data of a run and what to show of it.

    Raises:
        InputError: If the data's options are wrong.
    """
    data: DataOptions = make_parser().instantiate(parsed).data
    choice = Choice(parsed.split, parsed.row, parsed.random)
    return data, Options(choice, parsed.html, parsed.json)


def make_parser() -> Parser:
    """Return a parser that takes the configs and the options of `fit`, and checks those of data."""
    parser = Parser(prog="lit-sft inspect", description="Look at what a run would train on.")
    parser.add_argument("--config", action="config", help="A run's YAML file, as for fit.")
    parser.add_argument(
        "--split",
        type=Literal["train", "val", "test"],
        default="train",
        help="Of the rows that are shown.",
    )
    parser.add_argument(
        "--row", type=int | None, help="Show this row, by the number that errors give."
    )
    parser.add_argument(
        "--random", type=int | None, help="Show so many rows, drawn at random by data.seed."
    )
    parser.add_argument("--html", type=str | None, help="Write one self-contained page, too.")
    parser.add_argument("--json", action="store_true", help="Print JSON in place of text.")
    parser.add_class_arguments(DataOptions, "data", sub_configs=True)
    for name in sorted(sections.SECTIONS.keys() - {"data"}):
        about = "Only base_model is read." if name == "model" else "Not looked at."
        parser.add_argument(f"--{name}", type=dict, default={}, help=about)
    for name in sorted(sections.Options("fit").of_run.keys() - {"config"}):
        parser.add_argument(f"--{name}", type=Any, help="Not looked at.")
    return parser


def _write(report: Report, options: Options) -> None:
    if options.html:
        with replace_file(Path(options.html)) as staged:
            staged.write_text(render_page(report), encoding="utf-8")
    if options.as_json:
        json.dump(report.as_dict(), sys.stdout)
        print()
    else:
        print_report(report, Console(highlight=False))
    if options.html:
        print(f"wrote {options.html}", file=sys.stderr if options.as_json else sys.stdout)

"""`lit-sft report`: a page to look at, of one run or of several beside each other."""

import argparse
import sys
from collections.abc import Sequence

from lit_sft.errors import InputError
from lit_sft.report.report_page import write_report


def run(arguments: Sequence[str]) -> int:
    """Run `lit-sft report`, and return its exit status: 1 for a full disk, 2 for a wrong input.

    Args:
        arguments: Those after the program's name, `report` included.
    """
    options = make_parser().parse_args(list(arguments[1:]))
    try:
        print(f"wrote {write_report(options.runs, options.output)}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `lit-sft report`."""
    parser = argparse.ArgumentParser(
        prog="lit-sft report",
        description="Write a page about a run; of several, their curves over each other.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="The folders of runs.")
    parser.add_argument(
        "--output", help="The file to write; report.html in the folder of the first, if not given."
    )
    return parser

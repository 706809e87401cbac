"""A report written out: as text on a terminal or in a pipe, and as one HTML page."""

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from itertools import groupby

from jinja2 import Environment
from rich.console import Console
from rich.text import Text

from lit_sft.data.ledger import format_ledgers
from lit_sft.inspect.row_report import FailedRow, Repeats, Report, SplitReport, TokenRow

BAR = 40
"""Characters of the longest bar."""
EXAMPLES = 3
"""Repeated rows shown of each kind; the page and the JSON have more."""


def print_report(report: Report, console: Console) -> None:
    """Print rows and figures; without colours, brackets say what colours would."""
    is_coloured = console.is_terminal and not console.no_color
    if report.rows:
        console.print(_explain(is_coloured), soft_wrap=True)
    for row in report.rows:
        console.print(format_row(row, is_coloured), soft_wrap=True)
    for line in format_figures(report):
        console.print(Text(show_controls(line)), soft_wrap=True)


def format_row(row: TokenRow, is_coloured: bool) -> Text:
    """Return a row with its supervised and its control tokens marked, and where it carries loss."""
    text = Text(f"\n{show_controls(row.name)}", style="bold" if is_coloured else "")
    if row.note:
        text.append(f": {show_controls(row.note)}", "not bold")
    if not row.input_ids:
        return text
    text.append(f": {len(row.input_ids)} tokens, {sum(row.supervised())} supervised\n", "not bold")
    marked = zip(row.supervised(), row.control, row.texts, strict=True)
    for supervised, run in groupby(marked, key=lambda token: token[0]):
        pieces = Text()
        for _, control, piece in run:
            _append_token(pieces, piece, control, is_coloured)
        if not is_coloured:
            pieces = Text.assemble("[[", pieces, "]]") if supervised else pieces
        elif supervised:
            pieces.stylize("green")
        text.append_text(pieces)
    for first, last in row.spans():
        begin, end = (f"{_quote(row, i)} → {_quote(row, i + 1)}" for i in (first, last))
        text.append(f"\nloss at positions {first} to {last}: {begin} … {end}", "not bold")
    for call in row.calls:
        text.append(f"\n{show_controls(call)}", "not bold")
    return text


def render_page(report: Report) -> str:
    """Return a page that loads nothing, all text of rows escaped; no script but its own may run."""
    folder = files("lit_sft.inspect")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        folder.joinpath("page.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        report=report,
        script=script,
        script_hash=digest,
        runs_of=_list_runs,
    )


def show_whitespace(piece: str) -> str:
    """Return what a token says with line breaks, blank tokens and control characters visible."""
    if piece.isspace():
        piece = piece.replace(" ", "·").replace("\t", "→")
    return show_controls(piece).replace("\n", "⏎\n")


def show_controls(text: str) -> str:
    """Return `text` with all that a terminal may obey, or not show, spelt out; lines stay lines."""
    return "".join(
        x if x.isprintable() or x == "\n" else x.encode("unicode_escape").decode() for x in text
    )


def format_figures(report: Report) -> Iterator[str]:
    """Yield the lines below the rows."""
    yield f"\n{report.task}, tokenizer {report.tokenizer}, template {report.template_sha256[:12]}\n"
    yield format_ledgers([split.ledger for split in report.splits.values()])
    for name, split in report.splits.items():
        yield from _format_split(name, split, report)
    for name, reason in report.missing.items():
        yield f"\nno {name} split: {reason}"
    yield ""
    for name, repeats in report.repeats.items():
        yield from _format_repeats(name, repeats)
    if report.dedup and any(repeats.rows for repeats in report.repeats.values()):
        yield "data.dedup: these rows of train are removed"
    yield from _format_failures(report.num_failures, report.failures)


def _explain(is_coloured: bool) -> Text:
    marks = Text.assemble(("green", "green"), ", ", ("control tokens", "cyan reverse"))
    if not is_coloured:
        marks = Text("in [[ ]], control tokens in { }")
    return Text.assemble(
        "Supervised tokens are ", marks, ". Each is learnt at the position before it: the loss at "
        "position i is that of token i + 1."
    )  # fmt: skip


def _append_token(text: Text, piece: str, control: bool, is_coloured: bool) -> None:
    shown = show_whitespace(piece)
    if control and not is_coloured:
        shown = f"{{{shown}}}"
    text.append(shown, style="cyan reverse not bold" if control and is_coloured else "not bold")


def _quote(row: TokenRow, position: int) -> str:
    text = show_whitespace(row.texts[position]).replace("\n", "")
    return f"“{text}”" if text else "…"


def _format_split(name: str, split: SplitReport, report: Report) -> Iterator[str]:
    ledger = split.ledger
    figures = "  ".join(f"{key} {value}" for key, value in split.percentiles.items())
    yield f"\n{name}, tokens a row: {figures}"
    most = max(bin_.rows for bin_ in split.histogram)
    for bin_ in split.histogram:
        bar = "█" * round(BAR * bin_.rows / most) or ("▏" if bin_.rows else "")
        yield f"  {f'{bin_.first} to {bin_.last}':>15}{bin_.rows:>9,} {bar}"
    padding = ", ".join(f"{share:.1%} {mode}" for mode, share in split.padding.items())
    yield f"  padding, in batches of {report.batch_size}: {padding}"
    if ledger.dropped:
        listed = ", ".join(split.too_long[:EXAMPLES]) + ", …" * (ledger.dropped > EXAMPLES)
        marked = ", or with a mark of turns" if ledger.markers else ""
        marked += ", or with a bad call" if ledger.bad_calls else ""
        yield f"  dropped: {ledger.dropped:,} over {report.max_length} tokens{marked} ({listed})"
    if ledger.truncated:
        yield f"  truncated: {ledger.truncated:,} to {report.max_length} tokens"
    if ledger.duplicates:
        yield f"  removed: {ledger.duplicates:,} duplicates"
    if ledger.markers:
        counts = ", ".join(f"{rows:,} rows with {mark!r}" for mark, rows in ledger.markers.items())
        yield f"  marks of turns as plain text: {counts}"
    if ledger.bad_calls:
        counts = ", ".join(f"{rows:,} rows with {kind}" for kind, rows in ledger.bad_calls.items())
        yield f"  calls that the tools of their rows do not allow: {counts}"
    if ledger.lost_fields:
        counts = ", ".join(f"{turns:,} {name}" for name, turns in ledger.lost_fields.items())
        yield f"  left out, as the chat template does not write them: {counts}"
    if split.sources:
        yield "  sources: " + ", ".join(f"{rows:,} {x}" for x, rows in split.sources.items())


def _format_repeats(split: str, repeats: Repeats) -> Iterator[str]:
    where = "earlier in train" if split == "train" else f"in {split}"
    exact = f", with the same answer: {repeats.exact:,}" if repeats.rows else ""
    yield f"rows of train whose question stands {where}: {repeats.rows:,}{exact}"
    for example in repeats.examples[:EXAMPLES]:
        question = " ".join(example.question.split())
        yield f"  {example.row} is {example.original}: {question[:80]}"


def _format_failures(count: int, failures: list[FailedRow]) -> Iterator[str]:
    if not count:
        yield "\nevery mask is proven"
        return
    yield f"\n{count:,} rows fail; a run would stop at the first of them"
    for failure in failures:
        yield f"  {failure.row}: {failure.reason}"
    if count > len(failures):
        yield f"  … and {count - len(failures):,} more"


def _list_runs(row: TokenRow) -> list[tuple[bool, list[dict[str, object]]]]:
    """Return the tokens of a row in runs that are supervised throughout, or nowhere."""
    tokens = [
        {
            "text": show_whitespace(text),
            "control": control,
            "about": f"{position} · id {token}",
            "supervised": supervised,
        }
        for position, (token, text, control, supervised) in enumerate(
            zip(row.input_ids, row.texts, row.control, row.supervised(), strict=True)
        )
    ]
    runs = groupby(tokens, key=lambda token: bool(token["supervised"]))
    return [(supervised, list(run)) for supervised, run in runs]

"""A report as one HTML page that loads nothing."""

import base64
import hashlib
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment

from lit_sft.inspect.report import Report, TokenRow
from lit_sft.inspect.text import show_whitespace


def render_page(report: Report) -> str:
    """Return the page. All text of rows is escaped, and no script but the page's own may run."""
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


def _list_runs(row: TokenRow) -> list[tuple[bool, list[dict[str, Any]]]]:
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

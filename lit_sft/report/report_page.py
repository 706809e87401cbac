"""The page: one file that loads nothing, in which whatever rows say is text."""

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from lit_sft.errors import require
from lit_sft.files import replace_file, require_writable
from lit_sft.report.answer_table import make_answers
from lit_sft.report.config_table import compare_settings, list_settings
from lit_sft.report.curves import make_charts, make_marks
from lit_sft.report.facts import NONE, RunFacts
from lit_sft.report.read_run import read_run
from lit_sft.report.run_comparison import compare_runs, name_tasks
from lit_sft.report.script_json import to_json
from lit_sft.report.verdict import list_worries, tell_state, tell_verdict
from lit_sft.run.folder import RunFolder
from lit_sft.run.time_left import format_seconds

UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Characters that show nothing, or turn the order of what follows."""


def write_report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the page of one run, or of several beside each other, and return where it is.

    Args:
        runs: Their folders; one that is named twice is one run.
        output: The file; None is `report.html` in the folder of the first.

    Raises:
        InputError: If a folder is that of no run, or the file cannot be written where it is to be.
        OSError: If its disk is full.
    """
    path = Path(output).expanduser() if output else RunFolder(Path(runs[0]).expanduser()).report
    require(not path.is_dir(), f"report: --output {str(path)!r} is a folder; name a file")
    folders = {Path(run).expanduser().resolve(): run for run in reversed(runs)}
    page = render_report(_tell_apart([read_run(run) for run in reversed(folders.values())]))
    require_writable(path.parent, "report: --output")
    with replace_file(path) as staged:
        # Half of a surrogate pair cannot be written: as an escape it is text, in JSON too.
        staged.write_bytes(page.encode("utf-8", "backslashreplace"))
    return path


def render_report(runs: Sequence[RunFacts]) -> str:
    """Return the page of runs; a browser runs no script in it but its own, and loads nothing."""
    from lit_sft.report.plots import draw_charts, list_signs, read_script, write_short

    folder = files("lit_sft.report")
    script, style, page = (
        folder.joinpath(f"page.{kind}").read_text(encoding="utf-8")
        for kind in ("js", "css", "html.jinja")
    )
    plotter = read_script()
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_show_unseen
    )
    marks = [make_marks(facts) for facts in runs]
    drawing, answers = draw_charts(make_charts(runs), marks), make_answers(runs)
    plots = {"document": drawing.document, "roots": drawing.roots}
    return environment.from_string(page).render(
        runs=[_describe(facts) for facts in runs],
        title=" against ".join(facts.name for facts in runs),
        duels=[duel.describe() for duel in compare_runs(runs)],
        other_tasks=len({name_tasks(facts) for facts in runs}) > 1,
        differences=compare_settings(runs) if len(runs) > 1 else [],
        drawing=drawing,
        signs=list_signs(marks),
        answers=answers,
        data=to_json({"plots": plots, "answers": answers}),
        plotter=plotter,
        plotter_version=version("bokeh"),
        script=script,
        style=style,
        hashes=[_hash(plotter), _hash(script)],
        thousands=_write_count,
        percent=_write_share,
        short=write_short,
    )


def _tell_apart(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Return runs under the names of their folders, or under the whole paths where these differ."""
    names = [facts.name for facts in runs]
    if len(set(names)) == len(names):
        return list(runs)
    return [replace(facts, name=str(facts.folder)) for facts in runs]


def _describe(facts: RunFacts) -> dict[str, object]:
    """Return what the template says of a run."""
    last: Mapping[str, Any] = facts.begins[-1] if facts.begins else {}
    splits = last.get("data")
    seconds = facts.seconds()
    versions = last.get("versions")
    return {
        "name": facts.name,
        "verdict": tell_verdict(facts),
        "state": tell_state(facts),
        "worries": list_worries(facts),
        "remarks": facts.remarks,
        "settings": list_settings(facts.config),
        "splits": list(splits.values()) if isinstance(splits, dict) else [],
        "measured": facts.measured,
        "begin": {**last, "versions": versions if isinstance(versions, dict) else {}},
        "sessions": facts.sessions,
        "machine": _name_machine(last),
        "wall": format_seconds(seconds) if seconds is not None else "",
        "repeat": f"lit-sft fit --config {shlex.quote(str(RunFolder(facts.folder).config))} "
        "--trainer.default_root_dir NEW_FOLDER",
        "adapter": facts.adapter,
    }


def _name_machine(begin: Mapping[str, object]) -> str:
    """Return what a session ran on, as far as it is on record."""
    device, cores = begin.get("device"), begin.get("cores")
    parts = [f"{begin.get('ranks', 1)} x {device}" if device else "", begin.get("cpu")]
    parts += [f"{cores} cores" if cores else "", begin.get("system")]
    return ", ".join(str(part) for part in parts if part)


def _show_unseen(value: object) -> object:
    """Spell out what shows nothing in a value that goes into the page."""
    if type(value) is not str:  # what is safe already is of a type of its own
        return value
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def _write_count(value: object) -> str:
    """Return a number with its thousands apart; a dash where there is none."""
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else NONE


def _write_share(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, (int, float)) else NONE


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

"""What a run's folder tells, as plain values; what cannot be read of it is said, not raised."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lit_sft.errors import require
from lit_sft.report.facts import Given, Problem, RunFacts, Series, as_count
from lit_sft.run.answer_file import parse_answer
from lit_sft.run.folder import RunFolder
from lit_sft.run.lock import is_held
from lit_sft.run.metrics_rows import parse_rows, split_cells
from lit_sft.run.records import read_lines
from lit_sft.run.sessions import read_sessions

SECTIONS = ("model", "data", "trainer")
"""Of a config, by whose options a run is described."""
PROVENANCE = "lit_sft.json"
"""In the adapter's folder: which step it holds."""


def read_run(root: str | Path) -> RunFacts:
    """Return what a run's folder tells, whatever state the run is in.

    Raises:
        InputError: If there is no such folder, or no run has left anything in it.
    """
    root = Path(root).expanduser()
    require(root.is_dir(), f"report: there is no folder {str(root)!r}; expected that of a run")
    folder = RunFolder(root)
    known = (folder.config, folder.metrics, folder.generations, folder.answers, folder.sessions)
    require(
        any(path.is_file() for path in known),
        f"report: {str(root)!r} is no run's folder: it has neither {folder.config.name} nor "
        f"{folder.metrics.relative_to(root)}; expected a trainer.default_root_dir of lit-sft fit",
    )
    remarks: list[str] = []
    sessions, damaged = read_sessions(folder.sessions)
    _remark(remarks, folder, folder.sessions, damaged)
    whole = folder.answers.is_file()
    return RunFacts(
        name=root.resolve().name,
        folder=root,
        figures=_read_figures(folder, remarks),
        problems=_read_problems(folder, folder.answers if whole else folder.generations, remarks),
        sessions=sessions,
        config=_read_config(folder, remarks),
        adapter=_read_json(folder.adapter / PROVENANCE, remarks),
        measured=[_read_json(path, remarks) for path in sorted(folder.measured.glob("*.json"))],
        is_going_on=is_held(root),
        is_partial=not whole,
        changed=_find_change(folder.metrics),
        remarks=remarks,
    )


def _read_figures(folder: RunFolder, remarks: list[str]) -> dict[str, Series]:
    if not folder.metrics.is_file():
        return {}
    first, *lines = read_lines(folder.metrics) or [None]
    columns = split_cells(first)
    if columns[:1] != ["step"] or len(set(columns)) != len(columns):
        remarks.append(f"{folder.metrics.name}: the line of column names is damaged; no curves")
        return {}
    rows, damaged = parse_rows(columns, lines)
    _remark(remarks, folder, folder.metrics, len(damaged))
    figures: dict[str, Series] = {name: [] for name in columns[1:]}
    for step in sorted(rows):
        for name, value in rows[step].items():
            if name != "step":
                figures[name].append((step, float(value)))
    return {name: series for name, series in figures.items() if series}


def _read_problems(folder: RunFolder, path: Path, remarks: list[str]) -> list[Problem]:
    if not path.is_file():
        return []
    read = [parse_answer(line) for line in read_lines(path)]
    _remark(remarks, folder, path, sum(values is None for values in read))
    asked: dict[int, Mapping[str, Any]] = {}
    given: dict[int, dict[int, Given]] = {}
    for values in filter(None, read):
        row = values["row"]
        if "question" in values or row not in asked:
            asked[row] = values
        given.setdefault(row, {})[values["step"]] = Given(
            values["step"], values["verdict"], bool(values.get("finished", True)),
            values.get("output"), as_count(values.get("cut")), _read_tokens(values),
        )  # fmt: skip
    return [
        Problem(
            row, asked[row].get("question", ""), asked[row].get("reference", ""),
            [given[row][step] for step in sorted(given[row])],
        )
        for row in sorted(given)
    ]  # fmt: skip


def _read_tokens(values: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return the tokens of an answer, none unless they make up its text."""
    try:
        tokens = tuple((str(piece), float(p)) for piece, p in values.get("tokens") or ())
    except (TypeError, ValueError):
        return ()
    is_whole = "".join(piece for piece, _ in tokens) == values.get("output")
    return tokens if is_whole and all(0 <= p <= 1 for _, p in tokens) else ()


def _read_config(folder: RunFolder, remarks: list[str]) -> dict[str, object]:
    try:
        config: object = folder.read_config()
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        remarks.append(f"{folder.config.name}: it cannot be read as YAML; no config")
        return {}
    wrong = [x for x in SECTIONS if config.get(x) is not None and not isinstance(config[x], dict)]
    if wrong:
        remarks.append(f"{folder.config.name}: there are no options in {', '.join(wrong)}")
    return {name: value for name, value in config.items() if name not in wrong}


def _read_json(path: Path, remarks: list[str]) -> dict[str, object]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        return record
    remarks.append(f"{path.name}: it cannot be read, and is left out")
    return {}


def _remark(remarks: list[str], folder: RunFolder, path: Path, damaged: int) -> None:
    if damaged:
        lines = f"{damaged:,} lines are" if damaged > 1 else "a line is"
        remarks.append(f"{path.relative_to(folder.root)}: {lines} torn or damaged, and left out")


def _find_change(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None

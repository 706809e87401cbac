"""`logs/sessions.jsonl`: when a process began to train in a run's folder, on what, and its end."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lit_sft.run.records import append_rows, read_lines

PACKAGES = ("lit-sft", "torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets")
"""Whose versions a session names."""


def begin_session(path: Path, record: Mapping[str, object]) -> None:
    """Add that this process begins to train, with its command, its machine and its versions.

    Args:
        path: Of the file; a last line that a killed process has torn is ended.
        record: What only the run knows, such as the step that it goes on from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend(path)
    about = {
        "event": "begin",
        "time": _now(),
        "command": name_command(sys.argv),
        "versions": {name: found for name in PACKAGES if (found := _find_version(name))},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _name_cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }
    _append(path, about | dict(record))


def end_session(path: Path, step: int, how: str) -> None:
    """Add that the training of this process has ended.

    Args:
        path: Of the file.
        step: Optimizer steps taken.
        how: `finished`, or why it ended before.
    """
    _append(path, {"event": "end", "time": _now(), "step": step, "how": how})


def read_sessions(path: Path) -> tuple[list[dict[str, object]], int]:
    """Return what is on record, and how many lines are torn or damaged; nothing without a file."""
    if not path.is_file():
        return [], 0
    found, damaged = [], 0
    for line in read_lines(path):
        try:
            record = json.loads(line or "")
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and record.get("event") in ("begin", "end"):
            found.append(record)
        else:
            damaged += 1
    return found, damaged


def name_command(words: list[str]) -> str:
    """Return a command line as a user would type it, whatever Python made of its first word."""
    name = Path(words[0]).name if words else ""
    is_ours = name in ("lit-sft", "__main__.py")
    return shlex.join(["lit-sft" if is_ours else name, *words[1:]])


def _append(path: Path, record: Mapping[str, object]) -> None:
    append_rows(path, f"{json.dumps(record)}\n")


def _mend(path: Path) -> None:
    if path.is_file() and (whole := path.read_bytes()) and not whole.endswith(b"\n"):
        append_rows(path, "\n")


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _name_cpu() -> str:
    """Return the model of the processor, as Linux names it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

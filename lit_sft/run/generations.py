"""The answers that a run keeps while it trains, one JSON object a line."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from lit_sft.run.records import read_lines, tell_damage

GENERATIONS = Path("logs") / "generations.jsonl"
"""Under the run's folder."""
TEXTS = ("question", "output", "verdict")


class KeptAnswer(NamedTuple):
    """A line of the file, as it is and as it reads."""

    line: str
    values: dict[str, Any]

    @property
    def step(self) -> int:
        """After how many optimizer steps the model gave it."""
        return int(self.values["step"])


def read_generations(path: Path) -> list[KeptAnswer]:
    """Return the answers that can be read; those that cannot are told. No file has none."""
    if not path.is_file():
        return []
    read = [_read(line) for line in read_lines(path)]
    damaged = [number for number, answer in enumerate(read, start=1) if answer is None]
    tell_damage(path, damaged, "an answer with its step")
    return [answer for answer in read if answer]


def _read(line: str | None) -> KeptAnswer | None:
    try:
        values = json.loads(line or "")
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    if not all(isinstance(values.get(name), str) for name in TEXTS):
        return None
    return KeptAnswer(line or "", values)

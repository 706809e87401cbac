"""What is read of kept answers: all that are whole, and the others are told."""

import json
import logging

import pytest

from lit_sft.callbacks.console import describe_answers
from lit_sft.run.records import read_generations

LINES = [
    json.dumps({"step": step, "row": 0, "question": "q", "output": "\u2028a", "verdict": "right"})
    for step in (0, 4, 12)
]


@pytest.mark.parametrize(
    "damaged", [b"", b"\0\0\0", b"12", b'{"step": 4', b'{"step": 4}', b'{"step": "4"}', b"\xff"]
)
@pytest.mark.parametrize("is_last", [False, True])
def test_a_damaged_line_is_left_out_and_told_and_no_other(tmp_path, caplog, damaged, is_last):
    caplog.set_level(logging.INFO)
    path = tmp_path / "generations.jsonl"
    lines = [line.encode() + b"\n" for line in LINES]
    lines.insert(3 if is_last else 1, damaged if is_last else damaged + b"\n")
    path.write_bytes(b"".join(lines))
    assert [answer.line for answer in read_generations(path)] == LINES
    assert len(caplog.messages) == (0 if is_last and not damaged else 1)
    assert describe_answers(path, 5, step=9).count("[right] q") == 1


def test_without_a_file_there_are_no_answers(tmp_path):
    assert read_generations(tmp_path / "generations.jsonl") == []


def test_a_line_that_is_nested_without_end_is_left_out(tmp_path):
    path = tmp_path / "generations.jsonl"
    path.write_text("[" * 100_000 + "\n")
    assert read_generations(path) == []

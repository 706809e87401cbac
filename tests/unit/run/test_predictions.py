"""Answers of an earlier `predictions.jsonl`, found by what was asked."""

import json

import pytest

from lit_sft.callbacks.write_predictions import describe_prediction
from lit_sft.errors import InputError
from lit_sft.run.predictions import find_earlier_answers
from lit_sft.types import Prompt


def ask(row: int, question: str, answer: str | None = "ref") -> Prompt:
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    return Prompt(row, [1], [{"role": "user", "content": question}, *said], {})


def write(path, prompts, answers):
    lines = [describe_prediction(x, y, True, None) for x, y in zip(prompts, answers, strict=True)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def test_answers_are_found_wherever_they_stand(tmp_path):
    before = [ask(0, "ü"), ask(1, "b"), ask(2, "b"), ask(3, "other"), ask(4, "c", None)]
    path = write(tmp_path / "p.jsonl", before, ["1", "2", "3", "4", "5"])
    now = [ask(0, "c"), ask(1, "b", "another"), ask(2, "new"), ask(3, "b"), ask(4, "ü")]
    assert find_earlier_answers(path, now) == ["5", "2", None, "3", "1"]


def test_a_file_of_another_split_is_refused(tmp_path):
    path = write(tmp_path / "p.jsonl", [ask(0, "a")], ["1"])
    with pytest.raises(InputError, match="answers none of the 1 prompts of this split"):
        find_earlier_answers(path, [ask(0, "b")])


@pytest.mark.parametrize(
    "line", ["", "12", '{"answer": 3}', '{"prompt": [], "answer"', '{"prompt": []}']
)
def test_a_line_that_is_no_prediction_is_named(tmp_path, line):
    path = write(tmp_path / "p.jsonl", [ask(0, "a")], ["1"])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"line 2: expected a line of predictions\.jsonl"):
        find_earlier_answers(path, [ask(0, "a")])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.compare_with: cannot read .*nowhere"):
        find_earlier_answers(tmp_path / "nowhere", [ask(0, "a")])

"""Every answer of every evaluation, on disk and within bounds."""

import json

import pytest
from run_folders import answer

from lit_sft.run import answer_file
from lit_sft.run.answer_file import MOST_CHARACTERS, keep_answers, parse_answer


def evaluate(path, step, rows=3, output="out"):
    given = [answer(step, row, "r", f"{output} {row}") for row in range(rows)]
    keep_answers(path, step, [{k: v for k, v in x.items() if k != "step"} for x in given])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_stand_in_the_first_evaluation_alone(tmp_path):
    path = tmp_path / "logs" / "answers.jsonl"
    evaluate(path, 0)
    evaluate(path, 10)
    kept = read(path)
    assert [(x["step"], x["row"]) for x in kept] == [(s, r) for s in (0, 10) for r in range(3)]
    assert ["question" in x for x in kept] == [True] * 3 + [False] * 3
    assert all(map(parse_answer, path.read_text().splitlines()))


@pytest.mark.parametrize("has_gone_on", [True, False])
@pytest.mark.parametrize("damage", ["", '{"step": 10, "ro', '{"step": 1}\n'])
def test_a_resumed_run_leaves_what_an_unbroken_one_does(tmp_path, damage, has_gone_on):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    for step in (0, 10, 20):
        evaluate(whole, step)
    for step in (0, 10, 20) if has_gone_on else (0,):
        evaluate(resumed, step, output="of a branch that is gone" if step else "out")
    with resumed.open("a") as file:
        file.write(damage)
    for step in (10, 20):
        evaluate(resumed, step)
    assert resumed.read_bytes() == whole.read_bytes()


def test_long_texts_are_cut(tmp_path):
    path = tmp_path / "answers.jsonl"
    evaluate(path, 0, rows=1, output="x" * 10**6)
    (kept,) = read(path)
    assert (len(kept["output"]), kept["cut"]) == (MOST_CHARACTERS, 10**6 + 2)


def test_a_full_file_takes_verdicts_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_file, "MOST_BYTES", 600)
    path = tmp_path / "answers.jsonl"
    for step in (0, 1, 2):
        evaluate(path, step, output="x" * 100)
    kept = read(path)
    assert len(kept) == 9
    assert all(x["verdict"] == "right" for x in kept)
    assert ["output" in x for x in kept] == [True] * 2 + [False] * 7

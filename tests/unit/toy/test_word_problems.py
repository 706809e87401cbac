"""The generated word problems: right, reproducible, and kept apart."""

import hashlib
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import lit_sft.toy
from lit_sft.data.encode import encode_chat
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.toy.word_problems import SHARES, WordProblems, make_problem

LINE = re.compile(r"(?P<lead>.+) (?P<sum>\S+) = \$?<<(?P<left>[^=]+)=(?P<right>\d+)>>(?P<said>\d+)")
BASE = Path(lit_sft.toy.__file__).parent / "base"


def problems(split: str, count: int) -> list[dict[str, str]]:
    return [make_problem(split, i) for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(BASE))


def evaluate(expression: str) -> Fraction:
    """Evaluate from left to right; no expression mixes precedences."""
    number, *rest = re.split(r"([-+*/])", expression)
    value = Fraction(number)
    for sign, operand in zip(rest[::2], rest[1::2], strict=True):
        other = Fraction(operand)
        if sign in "+-":
            value = value + other if sign == "+" else value - other
        else:
            value = value * other if sign == "*" else value / other
    return value


@pytest.mark.parametrize("split", SHARES)
def test_every_annotation_and_the_answer_are_right(split):
    for problem in problems(split, 500):
        *lines, last = problem["answer"].split("\n")
        assert 1 <= len(lines) <= 4
        known = set(re.findall(r"\d+", problem["question"])) | {"2", "3", "4", "5", "60", "100"}
        for line in lines:
            found = LINE.match(line)
            assert found, line
            assert found["sum"] == found["left"]
            assert found["right"] == found["said"]
            assert evaluate(found["left"]) == int(found["right"])
            assert 0 < int(found["right"]) < 1000
            assert set(re.findall(r"\d+", found["left"])) <= known
            known.add(found["right"])
        assert last == f"#### {found['said']}"


def test_a_row_is_a_function_of_split_and_index():
    task = WordProblems(train_rows=20, val_rows=20, test_rows=20)
    longer = WordProblems(train_rows=40)
    assert task.rows("train") == longer.rows("train")[:20]
    assert task.rows("val") == problems("val", 20)
    assert make_problem("test", 7) == make_problem("test", 7)


def test_the_problems_are_those_that_the_base_was_trained_on():
    """A change to the stories needs a new base: run `python -m tools.pretrain`."""
    rows = [problem for split in SHARES for problem in problems(split, 300)]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest[:16] == "ddd851c67e756e04"


def test_no_question_is_in_two_splits():
    questions = {s: {p["question"] for p in problems(s, 3000)} for s in SHARES}
    splits = list(SHARES)
    for i, one in enumerate(splits):
        assert len(questions[one]) > 2800
        for other in splits[i + 1 :]:
            assert not questions[one] & questions[other]
    owners = [share for shares in SHARES.values() for share in shares]
    assert len(owners) == len(set(owners))


def test_all_lengths_occur_and_max_steps_limits_them():
    steps = [p["answer"].count("<<") for p in problems("train", 1000)]
    assert set(steps) == {1, 2, 3, 4}
    easy = WordProblems(train_rows=200, max_steps=1).rows("train")
    assert all(row["answer"].count("<<") == 1 for row in easy)


def test_every_text_is_made_of_known_words_and_decodes_to_itself(tokenizer):
    for problem in problems("train", 1000) + problems("test", 500):
        for text in problem.values():
            encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
            assert tokenizer.decode(ids) == text
            assert "".join(text[start:end] for start, end in offsets) == text
            pieces = re.findall(r" ?[A-Za-z]+|\d", text)
            words = [text[a:b] for a, b in offsets if re.fullmatch(r" ?[A-Za-z]+|\d", text[a:b])]
            assert words == pieces


def test_the_chat_rows_are_short(tokenizer):
    task = WordProblems(train_rows=500)
    lengths = [len(encode_chat(tokenizer, task.messages(r)).input_ids) for r in task.rows("train")]
    assert sum(lengths) / len(lengths) < 120
    assert max(lengths) < 256


def test_grading():
    task = WordProblems()
    row = {"question": "?", "answer": "Ava has 3*4 = <<3*4=12>>12 pens.\n#### 12"}
    assert task.grade(row, row["answer"])
    assert task.grade(row, "#### 12")
    assert task.grade(row, "#### 13") is False
    assert task.grade(row, "12") is None


@pytest.mark.parametrize(
    "wrong", [{"train_rows": 0}, {"val_rows": -1}, {"test_rows": 0}, {"max_steps": 5}]
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(InputError, match=f"task.{next(iter(wrong))} must be"):
        WordProblems(**wrong)

"""Prompts whose answers can be graded: who grades them, and which rows cannot be."""

import json
import time

import pytest

from lit_sft import ChatFile, Mixture, SFTDataModule
from lit_sft.data.gradable import make_gradable_prompts
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(str(tiny_base))


def make_file(folder, answers, name="a.jsonl") -> str:
    rows = [{"question": f"{n}?", "answer": answer} for n, answer in enumerate(answers)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_prompts_have_sources_and_graders(tmp_path, tokenizer):
    path = make_file(tmp_path, ["1"] * 20)
    tasks = {name: ChatFile(path, grader=name) for name in ("number", "f1")}
    found = make_gradable_prompts(Mixture(tasks), "val", tokenizer, 6, 0, 0)
    assert sorted(found.sources) == ["f1"] * 3 + ["number"] * 3
    assert found.graders == {"number": "number", "f1": "f1"}
    expected = {"number": None, "f1": 0.0}
    assert found.grades == [expected[source] for source in found.sources]
    alone = make_gradable_prompts(tasks["f1"], "val", tokenizer, 6, 0, 4)
    assert (len(alone.prompts), alone.sources, alone.graders) == (4, [""] * 4, {"": "f1"})


def test_rows_that_cannot_be_graded_are_named_as_in_any_error(tmp_path, tokenizer):
    answers = ["none" if n in (3, 5) else str(n) for n in range(10)]
    task = ChatFile(make_file(tmp_path, answers), grader="number")
    with pytest.raises(InputError) as caught:
        make_gradable_prompts(task, "val", tokenizer, 9, 0, 0)
    said = str(caught.value)
    assert said.startswith("train row 3: the answer of the row has no number")
    assert "[2 of 9 rows fail: 1 more so (train row 5)]" in said


def test_a_pattern_without_an_end_is_told_of_after_seconds(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("lit_sft.tasks.graders.SEARCH_SECONDS", 0.05)
    monkeypatch.setattr("lit_sft.data.gradable.PATIENCE_SECONDS", 0.2)
    path = make_file(tmp_path, ["xy" * 200 + "!"] * 300)
    task = ChatFile(path, grader="regex: ^(?:[xw][yv]|[xu][yt])+$")
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"^train row \d+: the grader's pattern .* takes m"):
        make_gradable_prompts(task, "val", tokenizer, 256, 0, 0)
    assert time.perf_counter() - began < 10


def test_a_grader_is_part_of_a_run_and_a_class_that_grades_is_not(tmp_path, tiny_base):
    path = make_file(tmp_path, ["1"] * 20)
    runs = [
        SFTDataModule(ChatFile(path, grader=grader), tokenizer=str(tiny_base)).describe_run()
        for grader in (None, "number", {"regex": "[0-9]"})
    ]
    assert [run.get("data.grader") for run in runs] == [None, "number", "regex: [0-9]"]
    assert "data.grader" not in runs[0]

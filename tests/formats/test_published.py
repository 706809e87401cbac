"""Every published shape is read for exactly what it says, or refused for what it is."""

import json

import pytest
from published import SHAPES

from lit_sft import ChatFile
from lit_sft.data.row_policy import RowPolicy, encode_to_fit
from lit_sft.data.splits import read_conversations, read_split
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.types import IGNORE_INDEX

WRITTEN = {"role", "content", "weight"}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return load_tokenizer(str(tiny_tokenizer))


def read(shape, folder):
    task = ChatFile(shape.write(folder), **shape.options)
    return task, read_conversations(task, read_split(task, "train", 0))


def encode(tokenizer, conversations):
    names, chats = zip(*conversations, strict=True)
    return encode_to_fit(tokenizer, chats, names, RowPolicy(512, "error"))


def list_learnt(tokenizer, fitted):
    """Return the texts of all runs of tokens that carry loss, each without its stop token."""
    stop = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    said, run = [], []
    for label in (label for row in fitted for label in row.example.labels):
        if label == stop:
            said.append(tokenizer.decode(run))
            run = []
        elif label != IGNORE_INDEX:
            run.append(label)
    assert not run
    return said


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_it_is_read_for_what_it_says_or_refused_for_what_it_is(shape, tokenizer, tmp_path):
    if shape.reads is None:
        with pytest.raises(InputError, match=shape.fails) as caught:
            encode(tokenizer, read(shape, tmp_path)[1])
        assert "\n" not in str(caught.value)
        return
    task, conversations = read(shape, tmp_path)
    found = [messages for _, messages in conversations]
    assert found == shape.reads
    assert task.describe().endswith(shape.unread)
    if any("tool_calls" in turn for row in found for turn in row):
        return  # the template of this test writes none
    assistant = [turn for row in found for turn in row if turn["role"] == "assistant"]
    every = [turn["content"] for turn in assistant if turn.get("weight") != 0]
    plain = [
        (name, [{k: turn[k] for k in turn.keys() & WRITTEN} for turn in row])
        for name, row in conversations
    ]
    learnt = list_learnt(tokenizer, encode(tokenizer, plain))
    assert learnt == (every if shape.learnt is None else shape.learnt)


def test_there_are_enough_shapes_and_each_once():
    assert len({shape.name for shape in SHAPES}) == len(SHAPES) >= 60


def test_a_list_of_paths_is_read_in_its_order(tmp_path):
    for name in ("b", "a"):
        row = json.dumps({"question": "q", "answer": name})
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n")
    task = ChatFile([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")])
    rows = read_conversations(task, read_split(task, "train", 0))
    assert [messages[1]["content"] for _, messages in rows] == ["b", "a"]

"""Random conversations, written in every format and read back: nothing lost, invented or learnt."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_sft import ChatFile
from lit_sft.data.splits import read_conversations, read_split

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=12)
SAID = TEXT.filter(lambda text: text.strip() and text not in ("null", "[]", "{}"))


@st.composite
def conversations(draw):
    """Turns that alternate, after a system prompt or none; answers may be marked."""
    turns = []
    for _ in range(draw(st.integers(1, 3))):
        marks = draw(st.sampled_from([{}, {}, {"weight": 0}, {"weight": 1}]))
        turns += [
            {"role": "user", "content": draw(SAID)},
            {"role": "assistant", "content": draw(SAID), **marks},
        ]
    system = draw(st.none() | SAID)
    return ([{"role": "system", "content": system}] if system else []) + turns


def split_system(messages):
    has_one = messages[0]["role"] == "system"
    return (messages[0]["content"], messages[1:]) if has_one else (None, messages)


def write_openai(messages):
    return {"messages": messages}


def write_axolotl(messages):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    marked = [{"train": bool(x["weight"])} if "weight" in x else {} for x in messages]
    turns = zip(messages, marked, strict=True)
    return {
        "conversations": [
            {"from": names[x["role"]], "value": x["content"], **mark} for x, mark in turns
        ]
    }


def write_swift(messages):
    marked = [{"loss_weight": float(x["weight"])} if "weight" in x else {} for x in messages]
    turns = zip(messages, marked, strict=True)
    return {"messages": [{"role": x["role"], "content": x["content"], **mark} for x, mark in turns]}


def write_parts(messages):
    parts = [[{"type": "text", "text": character} for character in x["content"]] for x in messages]
    return {"messages": [x | {"content": p} for x, p in zip(messages, parts, strict=True)]}


def write_system_column(messages):
    system, turns = split_system(messages)
    return {"system": system, "messages": turns}


def write_text(messages):
    return {"messages": json.dumps(messages)}


def strip_marks(messages):
    return [{"role": x["role"], "content": x["content"]} for x in messages]


def write_pairs(asked, answered):
    """Of a format that has one column for the last question, and one for its answer."""

    def write(messages):
        system, turns = split_system(messages)
        said = [turn["content"] for turn in turns]
        pairs = [list(pair) for pair in zip(said[:-2:2], said[1:-2:2], strict=True)]
        return {"system": system, "history": pairs, asked: said[-2], answered: said[-1]}

    return write


def write_xtuner(messages):
    system, turns = split_system(messages)
    said = [turn["content"] for turn in turns]
    pairs = [{"input": q, "output": a} for q, a in zip(said[::2], said[1::2], strict=True)]
    return {"conversation": [{"system": system or ""} | pairs[0], *pairs[1:]]}


WITH_MARKS = [
    write_openai,
    write_axolotl,
    write_swift,
    write_parts,
    write_system_column,
    write_text,
]
WITHOUT = {
    "alpaca": write_pairs("instruction", "output"),
    "dolly": write_pairs("instruction", "response"),
    "query": write_pairs("query", "response"),
    "question": write_pairs("question", "answer"),
    "prompt": write_pairs("prompt", "completion"),
    "xtuner": write_xtuner,
}
FORMATS = [(x.__name__, x, True) for x in WITH_MARKS] + [(x, WITHOUT[x], False) for x in WITHOUT]


def as_json_lines(rows, folder):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def as_json(rows, folder):
    path = folder / "a.json"
    path.write_text(json.dumps(rows, indent=1), "utf-8")
    return path


def as_parquet(rows, folder):
    path = folder / "a.parquet"
    Dataset.from_list(rows).to_parquet(path)
    return path


def as_csv(rows, folder):
    """Texts as they are, and all else as JSON, as tables have it."""
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, rows[0].keys())
    writer.writeheader()
    for row in rows:
        cells = {
            key: value if isinstance(value, str) or value is None else json.dumps(value)
            for key, value in row.items()
        }
        writer.writerow(cells)
    path = folder / "a.csv"
    path.write_text(sink.getvalue(), "utf-8", newline="")
    return path


@pytest.mark.parametrize("save", [as_json_lines, as_json, as_parquet, as_csv])
@pytest.mark.parametrize(("name", "write", "keeps_marks"), FORMATS, ids=[x[0] for x in FORMATS])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(chats=st.lists(conversations(), min_size=1, max_size=3))
def test_what_is_written_is_read(save, name, write, keeps_marks, chats):
    with tempfile.TemporaryDirectory() as folder:
        path = save([write(messages) for messages in chats], Path(folder))
        task = ChatFile(str(path))
        found = [messages for _, messages in read_conversations(task, read_split(task, "train", 0))]
    assert found == (chats if keeps_marks else [strip_marks(messages) for messages in chats])
    assert "not read" not in task.describe()

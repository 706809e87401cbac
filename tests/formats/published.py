"""A small file of each shape in which chat data is published, and what is right for it.

The shapes are those that the documentation of OpenAI, ShareGPT, Alpaca, Dolly, Axolotl, ms-swift,
LLaMA-Factory, XTuner, TRL and `datasets` tells of; the files are written here.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset, DatasetDict


class Shape(NamedTuple):
    """A file and what it says."""

    name: str
    write: Callable[[Path], str]
    """Writes below a folder, and returns the path to read."""
    reads: list[list[dict[str, Any]]] | None
    """The messages of each row; None where it is refused."""
    learnt: list[str] | None = None
    """What is learnt of all rows, in order; None for all that the assistant says."""
    fails: str = ""
    """A regular expression of the error."""
    options: dict[str, Any] = {}  # noqa: RUF012
    unread: str = ""
    """How `describe` ends."""


def say(role: str) -> Callable[..., dict[str, Any]]:
    return lambda content, **others: {"role": role, "content": content, **others}


S, U, A, T = (say(role) for role in ("system", "user", "assistant", "tool"))
QA = [[U("q"), A("a")]]
TURNS = [U("q"), A("a")]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "Does.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
SET = {
    "type": "function",
    "function": {
        "name": "set",
        "description": "Sets.",
        "parameters": {"type": "object", "properties": {"y": {"type": "string"}}},
    },
}
PARSED = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def file(name: str, content: bytes | str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(raw)
        return str(folder / name)

    return write


def lines(*rows: Any) -> Callable[[Path], str]:
    return file("a.jsonl", as_lines(list(rows)))


def parquet(*rows: Any) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        Dataset.from_list(list(rows)).to_parquet(folder / "a.parquet")
        return str(folder / "a.parquet")

    return write


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def several(files: dict[str, bytes], path: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return str(folder / path)

    return write


def saved(splits: bool) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        rows = Dataset.from_list([{"question": "q", "answer": "a"}])
        (DatasetDict(train=rows) if splits else rows).save_to_disk(str(folder / "saved"))
        return str(folder / "saved")

    return write


TURN_FORMATS = [
    Shape("messages", lines({"messages": TURNS}), QA),
    Shape("messages with a system turn", lines({"messages": [S("s"), *TURNS]}), [[S("s"), *TURNS]]),
    Shape("messages of a developer", lines({"messages": [{"role": "developer", "content": "s"}, *TURNS]}), [[S("s"), *TURNS]]),
    Shape("weight", lines({"messages": [U("q"), A("a", weight=0), U("r"), A("b", weight=1)]}), [[U("q"), A("a", weight=0), U("r"), A("b", weight=1)]], ["b"]),
    Shape("train: false", lines({"conversations": [*SHARED[:1], SHARED[1] | {"train": False}, *SHARED[:1], {"from": "gpt", "value": "b"}]}), [[U("q"), A("a", weight=0), U("q"), A("b")]], ["b"]),
    Shape("loss: false", lines({"messages": [U("q"), A("a", loss=False), U("r"), A("b", loss=True)]}), [[U("q"), A("a", weight=0), U("r"), A("b", weight=1)]], ["b"]),
    Shape("loss_weight", lines({"messages": [U("q"), A("a", loss_weight=0.0), U("r"), A("b", loss_weight=1.0)]}), [[U("q"), A("a", weight=0), U("r"), A("b", weight=1)]], ["b"]),
    Shape("loss_weight of a half", lines({"messages": [U("q"), A("a", loss_weight=0.5)]}), None, fails=r"messages\[1\] \(assistant\): loss_weight must be 0 .* got 0\.5"),
    Shape("marks that contradict", lines({"messages": [U("q"), A("a", weight=1, train=False)]}), None, fails="weight and train contradict each other"),
    Shape("train_detail", lines({"messages": [U("q"), A("a", train_detail=[{"begin_offset": 0, "end_offset": 0, "train": False}])]}), None, fails="'train_detail' marks parts of a turn"),
    Shape("a user to be learnt", lines({"messages": [U("q", train=True), A("a")]}), None, fails=r"message 0 \(user\): weight must be 0"),
    Shape("training: false", lines({"conversations": [SHARED[0], SHARED[1] | {"training": False}, *SHARED]}), [[U("q"), A("a", weight=0), *TURNS]], ["a"]),
    Shape("output_with_loss: false", lines({"conversation": [{"input": "q", "output": "a", "output_with_loss": False}, {"input": "r", "output": "b"}]}), [[U("q"), A("a", weight=0), U("r"), A("b")]], ["b"]),
    Shape("an unknown mark", lines({"messages": [U("q"), A("a", mask=True)]}), None, fails="'mask' may say whether the turn is learnt"),
    Shape("a part with a mark", lines({"messages": [U("q"), A([{"type": "text", "text": "a", "train": False}])]}), None, fails="parts of text alone, but has .*'train': False"),
    Shape("a part of thoughts", lines({"messages": [U("q"), A([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a"}])]}), None, fails="parts of text alone, but has {'type': 'reasoning'"),
    Shape("a row that is not to be learnt", lines({"messages": TURNS, "weight": 0}), None, fails="column 'weight' says that the row is not to be learnt"),
    Shape("an empty answer with other keys", lines({"conversation": [U("q"), A("", language="English", turn_identifier=1)]}), None, fails="the answer is empty"),
    Shape("a refusal", lines({"messages": [U("q"), A(None, refusal="no")]}), None, fails="does not write its refusal, .* learnt as silence"),
    Shape("strings in turn", lines({"conversations": ["q", "a", "r", "b"]}), [[*TURNS, U("r"), A("b")]]),
    Shape("ms-swift with tools", lines({"messages": [U("q"), {"role": "tool_call", "content": "{}"}, {"role": "tool_response", "content": "1"}, A("a")]}), [[U("q"), A("{}"), T("1"), A("a")]]),
    Shape("no turn to be learnt", lines({"messages": [U("q"), A("a", train=False)]}), None, fails="every assistant turn has weight 0"),
    Shape("parts of text", lines({"messages": [U([{"type": "text", "text": "q"}]), A("a")]}), QA),
    Shape("parts with a picture", lines({"messages": [U([{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "x"}}]), A("a")]}), None, fails="parts of text alone, but has {'type': 'image_url'"),
    Shape("a call that is shown", lines({"messages": [U("q"), A(None, tool_calls=[CALL], weight=0), T("1", tool_call_id="1"), A("a")]}), [[U("q"), A("", tool_calls=[PARSED], weight=0), T("1", tool_call_id="1"), A("a")]]),
    Shape("ShareGPT", lines({"conversations": SHARED}), QA),
    Shape("ShareGPT with a system turn", lines({"conversations": [{"from": "system", "value": "s"}, *SHARED]}), [[S("s"), *TURNS]]),
    Shape("ShareGPT with a system column", lines({"conversations": SHARED, "system": "s"}), [[S("s"), *TURNS]]),
    Shape("ShareGPT of roles", lines({"conversations": TURNS}), QA),
    Shape("ShareGPT with tools", lines({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}, {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}]}), [[U("q"), A("{}"), T("1"), A("a")]]),
    Shape("another role", lines({"conversations": [{"from": "alien", "value": "q"}, SHARED[1]]}), None, fails="message 0: unknown role 'alien'"),
    Shape("keys of turns", lines({"conversation": [U("q", ts=1, toxic=False), A("a", ts=2)]}), [[U("q", ts=1, toxic=False), A("a", ts=2)]], unread="not read: toxic of turns (1), ts of turns (2)"),
    Shape("pairs", lines({"conversation": [{"system": "s", "input": "q", "output": "a"}, {"input": "r", "output": "b"}]}), [[S("s"), *TURNS, U("r"), A("b")]]),
    Shape("a prompt beside its messages", lines({"prompt": "q", "prompt_id": "1", "messages": TURNS}), QA, unread="not read: prompt (1), prompt_id (1)"),
    Shape("two system prompts", lines({"messages": [S("s"), *TURNS], "system": "t"}), None, fails="column 'system' holds a system prompt, and the first turn is another"),
    Shape("one system prompt twice", lines({"messages": [S("s"), *TURNS], "system": "s"}), [[S("s"), *TURNS]]),
    Shape("an empty answer", lines({"messages": [U("q"), A(" ")]}), None, fails=r"message 1 \(assistant\): the answer is empty"),
    Shape("thoughts without an end", lines({"messages": [U("q"), A("<think>\nhm")]}), None, fails=r"message 1 \(assistant\): its thoughts begin \(<think>\) and never end"),
    Shape("thoughts alone", lines({"messages": [U("q"), A("<think>\nhm\n</think>\n\n")]}), None, fails="there is no answer behind the thoughts, and silence would be learnt"),
    Shape("thoughts alone, beside the content", lines({"messages": [U("q"), A("", reasoning_content="hm")]}), None, fails="there is no answer behind the thoughts"),
    Shape("thoughts alone that are shown", lines({"messages": [U("q"), A("<think>\nhm", weight=0), U("r"), A("b")]}), [[U("q"), A("<think>\nhm", weight=0), U("r"), A("b")]], ["b"]),
    Shape("no answer", lines({"messages": [U("q")]}), None, fails="there is no answer"),
    Shape("an answer of null", lines({"messages": [U("q"), A(None)]}), None, fails=r"messages\[1\] \(assistant\): content must be a string, but is None"),
    Shape("no question", lines({"messages": [A("a")]}), None, fails="no user turn"),
    Shape("thoughts that the template does not write", lines({"messages": [U("q"), A("a", reasoning_content="hm")]}), None, fails="does not write its reasoning_content"),
    Shape("a name that the template does not write", lines({"messages": [U("q", name="x"), A("a")]}), None, fails="does not write its name"),
    Shape("a call to be learnt", lines({"messages": [U("q"), A(None, tool_calls=[CALL])]}), None, fails="learnt as silence"),
    Shape("tools", lines({"messages": TURNS, "tools": [TOOL]}), [[U("q", tools=[TOOL]), A("a")]]),
    Shape("tools that the template does not write", lines({"messages": TURNS, "tools": [TOOL]}), None, fails="does not write its tools"),
    Shape("functions as text", lines({"messages": TURNS, "functions": json.dumps([TOOL["function"]])}), [[U("q", tools=[TOOL]), A("a")]]),
    Shape("tools as texts", lines({"conversations": SHARED, "tools": [json.dumps(TOOL)]}), [[U("q", tools=[TOOL]), A("a")]]),
    Shape("tools at the system turn", lines({"messages": [S("s", tools=json.dumps([TOOL])), *TURNS]}), [[S("s", tools=[TOOL]), *TURNS]]),
    Shape("tools under a system column", lines({"messages": TURNS, "system": "s", "tools": [TOOL]}), [[S("s", tools=[TOOL]), *TURNS]]),
    Shape("tools beside a question", lines({"query": "q", "response": "a", "tools": [TOOL]}), [[U("q", tools=[TOOL]), A("a")]]),
    Shape("tools in a column of another name", lines({"m": TURNS, "t": [TOOL]}), [[U("q", tools=[TOOL]), A("a")]], options={"columns": {"messages": "m", "tools": "t"}}, unread="read as task.columns (m)"),
    Shape("tools that have no name", lines({"messages": TURNS, "tools": [{"f": 1}]}), None, fails=r"^train row 0: tools\[0\]: expected a tool with a name"),
    Shape("tools that are a text", lines({"messages": TURNS, "tools": "add"}), None, fails="column 'tools' must hold a list of tools"),
    Shape("tools that are no JSON schemas", lines({"messages": TURNS, "tools": [{"name": "f", "parameters": {"x": {"type": "int"}, "type": "dict"}}]}), None, fails=r"^train row 0: tools\[0\] \(f\): parameters.type is 'dict', which is none of object"),
    Shape("arguments that are no JSON", lines({"messages": [U("q"), A(None, tool_calls=[{"function": {"name": "f", "arguments": "{x"}}])]}), None, fails=r"^train row 0: message 1 \(assistant\): tool_calls\[0\]: the arguments of 'f' are no JSON object \('{x'\)"),
    Shape("OpenAI's call of before", lines({"messages": [U("q"), A(None, function_call={"name": "f", "arguments": '{"x": 1}'}, weight=0), {"role": "function", "name": "f", "content": "1"}, A("a")]}), [[U("q"), A("", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}], weight=0), T("1", name="f"), A("a")]]),
    Shape("OpenAI's call of before as text", lines({"messages": [U("q"), A(None, function_call='{"name": "f", "arguments": "{\\"x\\": 1}"}', weight=0), {"role": "function", "name": "f", "content": "1"}, A("a")]}), [[U("q"), A("", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}], weight=0), T("1", name="f"), A("a")]]),
    Shape("ShareGPT with a call", lines({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}, {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}]}), [[U("q"), A("", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}]), T("1"), A("a")]]),
    Shape("ms-swift with two calls", lines({"messages": [U("q"), A("Let me see."), {"role": "tool_call", "content": '{"name": "f", "arguments": "{}"}'}, {"role": "tool_call", "content": '{"name": "g", "arguments": {}}'}, {"role": "tool_response", "content": "1"}, {"role": "tool_response", "content": "2"}, A("a")]}), [[U("q"), A("Let me see.", tool_calls=[{"function": {"name": "f", "arguments": {}}}, {"function": {"name": "g", "arguments": {}}}]), T("1"), T("2"), A("a")]]),
    Shape("no tools", lines({"messages": TURNS, "tools": "[]", "functions": None}), QA),
]  # fmt: skip
PAIR_FORMATS = [
    Shape("Alpaca", lines({"instruction": "q", "input": "i", "output": "a"}), [[U("q\ni"), A("a")]]),
    Shape("Alpaca without input", lines({"instruction": "q", "output": "a"}), QA),
    Shape("Alpaca with an empty input and a text", lines({"instruction": "q", "input": "", "output": "a", "text": "q a"}), QA, unread="not read: text (1)"),
    Shape("Alpaca with system and history", lines({"instruction": "q", "input": "", "output": "a", "system": "s", "history": [["p", "o"]]}), [[S("s"), U("p"), A("o"), *TURNS]]),
    Shape("Alpaca whose later rows have a history", lines({"instruction": "q", "output": "a"}, {"instruction": "q", "output": "a", "system": "s", "history": [["p", "o"]]}), [TURNS, [S("s"), U("p"), A("o"), *TURNS]]),
    Shape("columns of later rows", lines({"instruction": "q", "output": "a"}, {"instruction": "q", "output": "a", "score": 1}, {"instruction": "q", "output": "a", "score": 2}), QA * 3, unread="not read: score (2)"),
    Shape("Dolly", lines({"instruction": "q", "context": "c", "response": "a", "category": "x"}), [[U("q\nc"), A("a")]], unread="not read: category (1)"),
    Shape("Dolly with an empty context", lines({"instruction": "q", "context": "", "response": "a"}), QA),
    Shape("an instruction, its input and a response", lines({"instruction": "q", "input": "i", "response": "a"}), [[U("q\ni"), A("a")]]),
    Shape("query and response", lines({"query": "q", "response": "a"}), QA),
    Shape("query and response with system and history", lines({"query": "q", "response": "a", "system": "s", "history": [["p", "o"], ["r", "n"]]}), [[S("s"), U("p"), A("o"), U("r"), A("n"), *TURNS]]),
    Shape("an empty history", lines({"query": "q", "response": "a", "history": []}), QA),
    Shape("half a history", lines({"query": "q", "response": "a", "history": [["p"]]}), None, fails=r"history\[0\]: expected a question and its answer, got \['p'\]"),
    Shape("a question under a system prompt", lines({"id": "x", "system_prompt": "s", "question": "q", "response": "a"}), [[S("s"), *TURNS]], unread="not read: id (1)"),
    Shape("question and answer", lines({"question": "q", "answer": "a"}), QA),
    Shape("a question about a text", lines({"context": "c", "question": "q", "answer": "a"}), None, fails="'context' is not read, but holds what the question is about"),
    Shape("input and output", lines({"input": "q", "output": "a"}), QA),
    Shape("prompt and completion", lines({"prompt": "q", "completion": "a"}), QA),
    Shape("prompt and completion of turns", lines({"prompt": [U("q")], "completion": [A("a")]}), QA),
    Shape("prompt and response", lines({"prompt": "q", "response": "a"}), QA),
    Shape("two answers", lines({"prompt": "q", "completion": "a", "response": "b"}), None, fails="may be prompt_completion or prompt_response; set the task's `format`"),
    Shape("other names", lines({"input": "q", "target": "a"}), QA, options={"columns": {"prompt": "input", "answer": "target"}}, unread="read as task.columns (input, target)"),
    Shape("an answer that is missing", lines({"question": "q", "answer": "a"}, {"question": "q", "answer": ""}), None, fails="^train row 1: there is no answer"),
    Shape("no answer behind a history", lines({"query": "q", "response": None, "history": [["p", "o"]]}), None, fails="nothing to learn"),
    Shape("no answer in any row", lines({"question": "q"}), None, fails="^train row 0: there is no answer"),
]  # fmt: skip
NO_CHATS = [
    Shape("plain text", lines({"text": "q a"}), None, fails=r"^\S+a\.jsonl: the row has the columns 'text': plain text without turns"),
    Shape("preferences", lines({"prompt": "q", "chosen": "a", "rejected": "b"}), None, fails="preferences .* DPO"),
    Shape("preferences of turns", lines({"chosen": TURNS, "rejected": TURNS}), None, fails="preferences .* DPO"),
    Shape("answers labelled good and bad", lines({"prompt": "q", "completion": "a", "label": True}), None, fails="labels answers good and bad, which KTO"),
    Shape("turns labelled bad", lines({"messages": TURNS}, {"messages": TURNS, "label": False}), None, fails="^train row 1: column 'label' labels answers good and bad"),
    Shape("answers tagged in a table", file("a.csv", "instruction,output,kto_tag\nq,a,False\n"), None, fails="column 'kto_tag' labels"),
    Shape("a rejected response", lines({"messages": TURNS, "rejected_response": "b"}), None, fails="preferences .* DPO"),
    Shape("a rejected turn", lines({"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": SHARED[1]}), None, fails="preferences .* DPO"),
    Shape("labelled steps", lines({"prompt": "q", "completions": ["a"], "labels": [True]}), None, fails="labelled steps"),
    Shape("pictures", lines({"messages": TURNS, "images": ["1.png"]}), None, fails="'images' is not read, but holds pictures"),
    Shape("sound", lines({"messages": TURNS, "audios": ["1.wav"]}), None, fails="'audios' is not read, but holds sound"),
    Shape("no known column", lines({"target": "a"}), None, fails="no known format; set the task's `columns`"),
]  # fmt: skip
FILES = [
    Shape("a JSON list", file("a.json", json.dumps([{"messages": TURNS}], indent=2)), QA),
    Shape("one JSON object", file("a.json", json.dumps({"messages": TURNS}, indent=2)), QA),
    Shape("JSON objects over several lines", file("a.json", "\n".join([json.dumps({"messages": TURNS}, indent=2)] * 2)), QA * 2),
    Shape("a JSON object of lists", file("a.json", json.dumps({"data": [{"messages": TURNS}]})), None, fails=r"a\.json: .*one object"),
    Shape("JSON by columns", file("a.json", json.dumps({"prompt": ["q"], "completion": ["a"]})), None, fails=r"a\.json: .*one object"),
    Shape("JSON lines with a byte order mark", file("a.jsonl", b"\xef\xbb\xbf" + as_lines([{"messages": TURNS}])), QA),
    Shape("JSON lines in UTF-16", file("a.jsonl", as_lines([{"messages": [U("q"), A("ä")]}]).decode().encode("utf-16")), [[U("q"), A("ä")]]),
    Shape("JSON lines in another code", file("a.jsonl", as_lines([{"messages": [U("q"), A("ä")]}]).decode().encode("cp1252")), None, fails=r"a\.jsonl, line 1: not UTF-8"),
    Shape("gzip", file("a.jsonl.gz", gzip.compress(as_lines([{"messages": TURNS}]))), QA),
    Shape("zstd", file("a.jsonl.zst", zstd(as_lines([{"messages": TURNS}]))), QA),
    Shape("CSV", file("a.csv", "instruction,input,output\nq,,a\n"), QA),
    Shape("CSV with semicolons", file("a.csv", "instruction;output\nq;a\n"), QA),
    Shape("CSV of Excel", file("a.csv", "sep=;\r\nquestion; answer;;\r\nq;a;;\r\n;;;\r\n"), QA),
    Shape("CSV with capitals and a blank line", file("A.CSV", "\nquestion,answer\nq,a\n"), QA),
    Shape("JSON by columns and index", file("a.json", json.dumps({"prompt": {"0": "q"}, "completion": {"0": "a"}})), None, fails=r"a\.json: .*one object"),
    Shape("CSV with tabs", file("a.tsv", "question\tanswer\nq\ta\n"), QA),
    Shape("CSV in UTF-16", file("a.csv", "question,answer\nq,ä\n".encode("utf-16")), [[U("q"), A("ä")]]),
    Shape("CSV with turns as JSON", file("a.csv", 'messages\n"' + json.dumps(TURNS).replace('"', '""') + '"\n'), QA),
    Shape("CSV with an empty cell", file("a.csv", "question,answer\nq,a\nq,\n"), None, fails="^train row 1: there is no answer"),
    Shape("Parquet", parquet({"messages": TURNS}), QA),
    Shape("Parquet with nulls", parquet({"question": "q", "answer": "a"}, {"question": "q", "answer": None}), None, fails="^train row 1: there is no answer"),
    Shape("Parquet with turns as JSON", parquet({"messages": json.dumps(TURNS)}), QA),
    Shape("Parquet with calls of several arguments", parquet({"messages": [U("q"), A("", weight=0, tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}]), A("a")]}, {"messages": [U("q"), A("", weight=0, tool_calls=[{"function": {"name": "g", "arguments": {"y": "z"}}}]), A("a")]}), [[U("q"), A("", weight=0, tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}]), A("a")], [U("q"), A("", weight=0, tool_calls=[{"function": {"name": "g", "arguments": {"y": "z"}}}]), A("a")]]),
    Shape("Parquet with tools", parquet({"messages": TURNS, "tools": [TOOL]}, {"messages": TURNS, "tools": [SET]}), [[U("q", tools=[TOOL]), A("a")], [U("q", tools=[SET]), A("a")]]),
    Shape("Parquet with tools as JSON", parquet({"messages": TURNS, "tools": json.dumps([TOOL])}), [[U("q", tools=[TOOL]), A("a")]]),
    Shape("save_to_disk", saved(splits=False), QA),
    Shape("save_to_disk with splits", saved(splits=True), QA),
    Shape("a glob", several({"b.jsonl": as_lines([{"messages": TURNS}]), "a.jsonl": as_lines([{"messages": [U("r"), A("b")]}])}, "*.jsonl"), [[U("r"), A("b")], TURNS]),
]  # fmt: skip
SHAPES = [*TURN_FORMATS, *PAIR_FORMATS, *NO_CHATS, *FILES]

"""The report shows calls as calls, and what is wrong with them."""

import io
import json

import pytest
from rich.console import Console

from lit_sft import ChatFile
from lit_sft.data.options import DataOptions
from lit_sft.inspect.collect import Choice, inspect_data
from lit_sft.inspect.writers import print_report, render_page

TURN = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|eot_id|>"
)
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}" + TURN + CALLS
    + "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)  # fmt: skip
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


def row(name: str, value: object) -> dict:
    called = [{"id": "1", "function": {"name": name, "arguments": json.dumps({"a": value})}}]
    return {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": called},
            {"role": "tool", "content": "1", "tool_call_id": "1"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": json.dumps([TOOL]),
    }


@pytest.fixture
def make(tiny_tokenizer, tmp_path):
    rows = [row("add", 1), row("add", "é"), row("sub", 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    (tmp_path / "x.jinja").write_text(TEMPLATE)

    def make(choice: Choice, on_bad_call: str):
        data = DataOptions(
            ChatFile(str(tmp_path / "a.jsonl")),
            tokenizer=str(tiny_tokenizer),
            chat_template=str(tmp_path / "x.jinja"),
            on_bad_call=on_bad_call,
            max_length=1024,
            val_rows=0,
            cache_dir=str(tmp_path / "cache"),
        )
        return inspect_data(data, choice)

    return make


def write(report) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, highlight=False, width=200))
    return stream.getvalue()


def test_calls_stand_below_their_row_and_bad_ones_are_told(make):
    report = make(Choice(), "keep")
    text, page = write(report), render_page(report)
    assert '\nmessage 1 calls add({"a": 1})\n' in text
    wrong = 'message 1 calls add({"a": "é"}), which breaks its schema: a is \'é\', and no integer'
    assert wrong in text
    assert "message 1 calls sub" in text
    assert "which is not declared (add)" in text
    assert "calls that the tools of their rows do not allow: 1 rows with add: breaks" in text
    assert "message 1 calls add({&#34;a&#34;: 1})" in page
    assert "Calls of train that the tools of their rows do not allow" in page
    assert "[[<tool_call>⏎" in text  # the call is learnt
    calls = report.as_dict()["rows"][0]["calls"]
    assert calls == ['message 1 calls add({"a": 1})']


def test_a_row_that_is_left_out_says_why(make):
    text = write(make(Choice(row=2), "drop"))
    assert "train row 2: dropped: the call of 'sub' is not declared (add)" in text
    assert "dropped: 2 over 1024 tokens, or with a bad call (train row 1, train row 2)" in text

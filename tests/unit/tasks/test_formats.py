import pytest

from lit_sft.errors import InputError
from lit_sft.tasks.formats import (
    Format,
    choose_format,
    read_conversation,
    recognise_format,
)
from lit_sft.tasks.turns import mark_all_but_last

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
WRITTEN_CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def read(row):
    return read_conversation(row, recognise_format(row))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": [ASKED, SAID]}, "messages"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "sharegpt",
        ),
        ({"conversations": [ASKED, SAID]}, "sharegpt"),
        ({"instruction": "q", "input": "", "output": "a", "text": "q a"}, "alpaca"),
        ({"instruction": "q", "input": None, "output": "a"}, "alpaca"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"prompt": "q", "completion": "a"}, "prompt_completion"),
        ({"prompt": [ASKED], "completion": [SAID]}, "prompt_completion"),
        ({"id": 7, "question": "q", "answer": "a"}, "question_answer"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, SAID]},
         "messages"),
        ({"messages": [ASKED | {"name": None, "tool_calls": None}, SAID]}, "messages"),
    ],
)  # fmt: skip
def test_each_format_is_recognised_and_read(row, name):
    assert recognise_format(row).name == name
    assert read(row) == [ASKED, SAID]


def test_an_input_stands_below_its_instruction():
    assert (
        read({"instruction": "Add.", "input": "1, 2", "output": "3"})[0]["content"] == "Add.\n1, 2"
    )


def test_parts_are_joined_without_a_seam():
    parts = [{"type": "text", "text": "a "}, "b", {"text": "c"}]
    assert read({"messages": [ASKED, SAID | {"content": parts}]})[1]["content"] == "a bc"


def test_tools_keep_their_keys_and_their_roles():
    turns = read(
        {
            "messages": [
                {"role": "developer", "content": "s"},
                ASKED,
                {"role": "assistant", "content": None, "tool_calls": [WRITTEN_CALL]},
                {"role": "tool", "content": "4", "tool_call_id": "1"},
                SAID | {"weight": 1},
            ]
        }
    )
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert turns[2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert turns[3]["tool_call_id"] == "1"
    assert turns[4]["weight"] == 1
    shared = [{"from": x, "value": x} for x in ("system", "human", "function_call", "observation")]
    assert [turn["role"] for turn in read({"conversations": shared})] == [
        "system", "user", "assistant", "tool",
    ]  # fmt: skip


def test_all_turns_but_the_last_are_marked_and_own_weights_stay():
    turns = mark_all_but_last([ASKED, SAID, ASKED, SAID | {"weight": 1}, ASKED, SAID, ASKED])
    assert [turn.get("weight") for turn in turns] == [None, 0, None, 1, None, None, None]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"txt": "x", "id": 1}, "columns 'txt', 'id', which are no known format; set .*columns"),
        ({"text": "x"}, "plain text without turns"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, r"preferences \(a chosen and a rejected"),
        ({"prompt": "q", "completions": ["a"], "labels": [True]}, "labelled steps"),
        ({}, "no columns"),
        ({"messages": [], "prompt": "", "completion": ""},
         "may be messages or prompt_completion; set the task's `format`"),
        ({"question": None, "answer": "a"}, "'question' must hold a string, but holds NoneType"),
        ({"messages": [ASKED, SAID | {"train": True, "weight": 0}]}, "weight and train contradict"),
        ({"messages": [ASKED, SAID | {"loss_weight": 0.5}]}, r"loss_weight must be 0 .* got 0\.5"),
        ({"messages": [ASKED, SAID | {"train": "false"}]}, "train must be 0 or false"),
        ({"messages": [ASKED, SAID | {"train_detail": [{"begin_offset": 0}]}]}, "marks parts of a"),
        ({"query": "q", "response": "a", "history": [["q"]]}, r"history\[0\]: expected a question"),
        ({"query": "q", "response": "a", "system": "s", "system_prompt": "t"}, "both 'system' and"),
        ({"instruction": "q", "output": 3}, "'output' must hold a string, but holds int 3"),
        ({"messages": "hi"}, "'messages' must hold a list of messages, but holds 'hi'"),
        ({"messages": []}, "must hold a list of messages"),
        ({"messages": [ASKED, "a"]}, r"messages\[1\]: expected a message, got 'a'"),
        ({"messages": [ASKED, {"content": "a"}]}, r"messages\[1\]: there is no role; the keys are"),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]},
         r"messages\[1\] \(assistant\): content must be a string, but is None"),
        ({"messages": [ASKED, {"role": "assistant"}]}, r"\(assistant\): content must be a string"),
        ({"messages": [ASKED, SAID | {"content": [["a"]]}]}, r"text alone, but has \['a'\]"),
        ({"messages": [ASKED | {"content": [{"type": "image_url"}]}, SAID]}, "parts of text alone"),
        ({"messages": [ASKED | {"value": "x"}, SAID]}, r"\[0\]: both 'content' and 'value' hold"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"\(user\): content must be a string"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_says_why(row, reason):
    with pytest.raises(InputError, match=reason):
        read(row)


def test_columns_of_any_name():
    row = {"q": "q", "a": "a", "chat": [ASKED, SAID], "sys": "s"}
    pair = choose_format("auto", {"answer": "a", "prompt": "q", "system": "sys"})
    assert pair == Format("task.columns", ("q", "a"))
    assert read_conversation(row, pair) == [ASKED, SAID]
    turns = choose_format("auto", {"messages": "chat"})
    assert read_conversation(row, turns) == [ASKED, SAID]
    assert choose_format("auto", {"system": "sys"}) is None


@pytest.mark.parametrize(
    ("name", "columns", "reason"),
    [
        ("auto", {"prompt": "q"}, "takes `prompt` and `answer`, or `messages`.*got prompt"),
        ("auto", {"prompt": "q", "answer": "a", "messages": "m"}, "takes `prompt` and"),
        ("alpaca", {"messages": "m"}, "leave out task.format=alpaca"),
        ("alpacca", {}, "'alpacca' is none of messages, sharegpt"),
    ],
)
def test_options_that_contradict_each_other(name, columns, reason):
    with pytest.raises(InputError, match=reason):
        choose_format(name, columns)

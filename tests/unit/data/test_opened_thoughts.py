"""Generation prompts that open the thoughts: what is learnt stands behind them, token for token."""

import random
from pathlib import Path

import pytest
from families import FAMILIES, TEMPLATES, generate_conversations, make_tokenizer

from lit_sft.data import lost_fields
from lit_sft.data.encode import encode_chat, encode_chats, encode_prompt
from lit_sft.data.lost_fields import find_lost_fields
from lit_sft.data.render import render_conversation
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.types import IGNORE_INDEX

OPENING = [name for name, family in FAMILIES.items() if family.says]
STRIPPING = ("qwq", "deepseek_r1")
QWQ = (TEMPLATES / "qwq.jinja").read_text()
WRITING = QWQ.replace(
    '{{- "<|im_start|>" + message.role + "\\n" + content',
    "{%- set own = message.reasoning_content or '' %}"
    '{{- "<|im_start|>" + message.role + "\\n" + '
    '("<think>\\n" + own + "\\n</think>\\n\\n" if message.role == "assistant" else "") + content',
)
"""Keeps the thoughts of every turn."""


def ask(content: str, **more) -> dict:
    return {"role": "user", "content": content, **more}


def say(content: str, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load the tokenizer of a family, its marks of thoughts special or not, with a template."""
    loaded = {}

    def load(name: str, template: str | None = None, special: bool = False):
        if (name, template, special) not in loaded:
            folder: Path = tmp_path_factory.mktemp(name)
            tokenizer = make_tokenizer(FAMILIES[name])
            if special:
                tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
            tokenizer.save_pretrained(folder)
            file = FAMILIES[name].file
            if template:
                file = str(folder / "own.jinja")
                Path(file).write_text(template)
            loaded[name, template, special] = load_tokenizer(str(folder), file)
        return loaded[name, template, special]

    return load


def read_learnt(tokenizer, messages, on_lost_field="error") -> str:
    labels = encode_chat(tokenizer, messages, on_lost_field).labels
    return tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", OPENING)
def test_what_is_learnt_begins_where_generation_does(load, name, special):
    tokenizer, family = load(name, special=special), FAMILIES[name]
    answers = [
        (say("It is 4."), ""),
        (say(""), ""),
        (say("It is 4.", reasoning_content="2 and 2"), "2 and 2"),
        (say("It is 4.", thinking="2 and 2"), "2 and 2"),
        (say("It is 4.", reasoning="\n\n 2 and 2 \n"), "2 and 2"),
        (say("<think>\n2 and 2\n</think>\nIt is 4."), "2 and 2"),
        (say("2 and 2</think>It is 4."), "2 and 2"),
    ]
    for answer, thoughts in answers:
        for messages in (
            [ask("2+2?"), answer],
            [ask("q"), say("a", weight=0, reasoning="r"), ask("2+2?"), answer],
        ):
            example = encode_chat(tokenizer, messages)
            prompt = encode_prompt(tokenizer, messages)
            labels = example.labels[len(prompt) :]
            assert tokenizer.decode(prompt).endswith("<think>\n")
            assert example.input_ids[: len(prompt)] == prompt
            assert example.labels[: len(prompt)] == [IGNORE_INDEX] * len(prompt)
            learnt = [label for label in labels if label != IGNORE_INDEX]
            assert labels[: len(learnt)] == learnt
            close = tokenizer.convert_tokens_to_ids("</think>")
            assert learnt.count(close) == 1
            said = tokenizer.decode(learnt)
            assert said.endswith(answer["content"].rpartition("</think>")[2].strip() + family.stop)
            before, _, behind = said.partition("</think>")
            assert before.strip("\n ") == thoughts
            assert before.endswith("\n")
            assert behind.startswith("\n")


@pytest.mark.parametrize("name", OPENING)
def test_an_earlier_turn_that_loses_its_thoughts_is_refused_and_may_be_shown(load, name):
    messages = [ask("q"), say("a", reasoning="r"), ask("q"), say("b", reasoning="s")]
    with pytest.raises(InputError, match=r"message 1 .*opens the thoughts .*give it weight 0"):
        encode_chat(load(name), messages)
    messages[1]["weight"] = 0
    assert read_learnt(load(name), messages) == FAMILIES[name].says("s", "b") + FAMILIES[name].stop


def test_earlier_turns_that_keep_their_thoughts_are_learnt(load):
    tokenizer = load("qwq", WRITING)
    messages = [ask("q"), say("a", reasoning_content="r"), ask("q")]
    messages += [say("b", reasoning_content="s"), ask("q"), say("c")]
    said = ["r\n</think>\n\na", "s\n</think>\n\nb", "\n</think>\n\nc"]
    assert read_learnt(tokenizer, messages) == "<|im_end|>".join([*said, ""])
    example = encode_chat(tokenizer, messages)
    for turn in (1, 3, 5):  # each behind the prompt that a model was given for it
        prompt = encode_prompt(tokenizer, messages[: turn + 1])
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[len(prompt) - 1] == IGNORE_INDEX
        assert example.labels[len(prompt)] != IGNORE_INDEX


@pytest.mark.parametrize("name", STRIPPING)
def test_thoughts_that_are_added_are_not_lost_and_others_are(load, name):
    tokenizer = load(name)
    cases = [
        ([ask("q"), say("a", reasoning="r")], []),
        ([ask("q"), say("<think>r</think>a")], []),
        ([ask("q"), say("<think>r</think>a", reasoning="r")], []),
        ([ask("q"), say("<think>r</think>a", reasoning="s")], ["assistant.reasoning"]),
        ([ask("q"), say("a", reasoning_content="r", thinking="s")], ["assistant.thinking"]),
        ([ask("q", name="Al"), say("a", reasoning="r")], ["user.name"]),
        ([ask("q"), say("<think>r</think>b", weight=0), ask("q"), say("a")], []),
    ]
    for messages, names in cases:
        chat = render_conversation(tokenizer, messages)
        assert [found.name for found in find_lost_fields(tokenizer, chat)] == names, messages


@pytest.mark.parametrize("name", OPENING)
def test_plain_rows_are_compared_and_not_rendered_again(load, name, monkeypatch):
    encode_chat(load(name), [ask("q"), say("a")])
    monkeypatch.setattr(lost_fields, "render_turns", None)
    encode_chat(load(name), [ask("another <|im_end|>\n"), say("answer")])


@pytest.mark.parametrize("name", OPENING)
def test_a_batch_gives_what_one_at_a_time_gives(load, name):
    draw, chats = random.Random(1), []
    for messages in generate_conversations(1, 40, system=True):
        for message in messages[:-1]:
            message.update({"weight": 0} if message["role"] == "assistant" else {})
        messages[-1]["reasoning_content"] = draw.choice(["", "r", "<|im_end|>"])
        chats.append(messages)
    assert encode_chats(load(name), chats) == [encode_chat(load(name), chat) for chat in chats]


def test_thoughts_cannot_end_twice_nor_hold_the_mark_that_parts_tokens(load):
    with pytest.raises(InputError, match="thoughts hold </think>, which would end them; remove"):
        encode_chat(load("qwq"), [ask("q"), say("a", reasoning="r</think>s")])
    with pytest.raises(InputError, match=r"a message holds U\+FDD1; remove it"):
        encode_chat(load("qwq"), [ask("\ufdd1"), say("a")])


def test_special_marks_are_the_answers_own_and_nobody_elses(load):
    tokenizer = load("qwen35", special=True)
    mark = tokenizer.convert_tokens_to_ids("</think>")
    for messages, count in [
        ([ask("</think>"), say("<think>r</think>a")], 1),
        ([ask("<think>x</think>"), say("a </think> b", reasoning="r")], 1),
        ([ask("q"), say("r </think> b")], 1),
    ]:
        ids = encode_chat(tokenizer, messages).input_ids
        assert ids.count(mark) == count, messages
    chatml = load("chatml", special=True)
    learnt = read_learnt(chatml, [ask("q"), say("<think>r</think>a")])
    assert learnt == "<think>r</think>a<|im_end|>"
    assert (
        chatml.convert_tokens_to_ids("<think>")
        in encode_chat(chatml, [ask("q"), say("<think>r</think>a")]).labels
    )


MARK, END = "{% generation %}", "{% endgeneration %}"
BODY = '"<|im_start|>" + message.role + "\\n" + content + "<|im_end|>\\n"'
MARKED = QWQ.replace(
    "{{- " + BODY + " }}",
    '{%- if message.role == "assistant" %}{{- "<|im_start|>assistant\\n" }}'
    + MARK + '{{- content + "<|im_end|>" }}' + END + '{{- "\\n" }}'
    + "{%- else %}{{- " + BODY + " }}{%- endif %}",
)  # fmt: skip
MARKED_THOUGHTS = MARKED.replace(MARK, MARK + '{{- "<think>\\n" + (message.reasoning_content or "")'
                                 ' + "\\n</think>\\n\\n" }}')  # fmt: skip
BEHIND = MARKED_THOUGHTS.replace(MARK + '{{- "<think>\\n" +', '{{- "<think>\\n" }}' + MARK + "{{-")


@pytest.mark.parametrize("template", [MARKED, MARKED_THOUGHTS, BEHIND])
def test_marks_around_all_that_is_said_hold(load, template):
    messages = [ask("q"), say("a", reasoning_content="r")]
    tokenizer = load("qwq", template)
    prompt = encode_prompt(tokenizer, messages)
    assert encode_chat(tokenizer, messages).input_ids[: len(prompt)] == prompt
    assert read_learnt(tokenizer, messages) == "r\n</think>\n\na<|im_end|>"


def test_marks_that_leave_out_the_thoughts_are_refused(load):
    template = MARKED.replace(
        MARK, '{{- "<think>\\n" + (message.reasoning_content or "") + "\\n</think>\\n\\n" }}' + MARK
    )
    with pytest.raises(InputError, match="marks do not surround all that follows it; move them"):
        load("qwq", template)


def test_thoughts_behind_a_prompt_that_closes_them_are_refused(load):
    template = QWQ.replace('<think>\\n" }}', '<think>\\n\\n</think>\\n\\n" }}').replace(
        '"\\n" + content', '"\\n" + ("<think>\\n" + (message.reasoning_content or "") + '
        '"\\n</think>\\n\\n" if message.role == "assistant" else "") + content',
    )  # fmt: skip
    assert read_learnt(load("qwq", template), [ask("q"), say("a")]) == "a<|im_end|>"
    with pytest.raises(InputError, match=r"closes the thoughts .*thinking is off.* remove them"):
        encode_chat(load("qwq", template), [ask("q"), say("a", reasoning_content="r")])


def test_thinking_off_in_nemotrons_template_learns_the_answer_alone(load):
    template = (TEMPLATES / "nemotron3.jinja").read_text().replace("else true", "else false")
    tokenizer = load("nemotron3", template)
    messages = [ask("q"), say("a")]
    assert tokenizer.decode(encode_prompt(tokenizer, messages)).endswith("<think></think>")
    assert read_learnt(tokenizer, messages) == "a<|im_end|>"

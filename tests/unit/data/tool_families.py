"""Template families with tools, calls and thoughts, each written a second time, piece by piece.

The writers know nothing of the package, nor of Jinja: they write what the templates of `templates/`
write, and know of each piece whether a message says it, and whether it is learnt. (The templates
are short ones after those published for the models they are named after; what they share with them
is the frame around turns, tools, calls and results.)
"""

import json
import random
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from families import (
    CHATML_TOKENS,
    CORPUS,
    DATED,
    LLAMA3,
    LLAMA3_TOKENS,
    TEMPLATES,
    Family,
    make_tokenizer,
    read_as_text,
)
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from lit_sft.types import IGNORE_INDEX

MISTRAL_TOKENS = [
    *("<s>", "[INST]", "[/INST]", "</s>", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
    *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[ARGS]", "[CALL_ID]"),
    "[TOOL_CONTENT]",
]
QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions.\n\nTheir signatures stand within "
    "<tools></tools> tags:\n<tools>",
    "\n</tools>\n\nFor each call, return its name and arguments within <tool_call></tool_call> "
    'tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
)


class Text:
    """A conversation, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, bool, bool]] = []
        self.learns = False

    def frame(self, *texts: str) -> None:
        """Add what the template writes itself."""
        self.pieces += [(text, False, self.learns) for text in texts]

    def say(self, text: str) -> None:
        """Add what a message says."""
        self.pieces.append((text, True, self.learns))

    def end(self, stop: str, behind: str = "") -> None:
        """End an assistant turn: its stop token is learnt, what follows is not."""
        self.frame(stop)
        self.learns = False
        self.frame(behind)


class Case(NamedTuple):
    """A conversation, and how it is to be trained on."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    learn_thoughts: bool
    kwargs: dict[str, Any]


class ToolFamily(NamedTuple):
    template: str
    tokens: list[str]
    stop: str
    write: Callable[[Case], Text]
    refuses: Callable[[Case], str] = lambda case: ""
    """A regular expression of the error that a conversation is refused with, if it is."""
    kind: str = "bytes"
    thinks: str = ""
    """The key for the thoughts of a message, if the template knows any; or `content`."""
    kwargs: tuple[dict[str, Any], ...] = ({},)
    alike: bool = True
    """Whether what it calls is proven, or, without calls, nothing is called."""
    single: bool = False
    """Whether a turn has one call, and no content beside it."""


def write_turn_of_chatml(text: Text, message: dict[str, Any]) -> None:
    text.frame(f"<|im_start|>{message['role']}\n")
    text.say(message["content"])
    text.frame("<|im_end|>\n")


def write_tools_of_qwen(
    text: Text, case: Case, default: str, strips: bool = False
) -> list[dict[str, Any]]:
    """Write the system turn, and return the other messages."""
    first, *others = case.messages
    has_system = first["role"] == "system"
    if not case.tools:
        if not has_system and default:
            text.frame(f"<|im_start|>system\n{default}<|im_end|>\n")
        return case.messages
    text.frame("<|im_start|>system\n")
    if has_system:
        text.say(first["content"].strip() if strips else first["content"])
        text.frame("\n\n")
    else:
        text.frame(f"{default}\n\n" if default else "")
    text.frame(QWEN_TOOLS[0])
    for tool in case.tools:
        text.frame("\n")
        text.say(json.dumps(tool, ensure_ascii=False))
    text.frame(QWEN_TOOLS[1] + "<|im_end|>\n")
    return others if has_system else case.messages


def write_results(
    text: Text, messages: list[dict[str, Any]], number: int, strips: bool = False
) -> None:
    def is_tool(place: int) -> bool:
        return 0 <= place < len(messages) and messages[place]["role"] == "tool"

    text.frame("" if is_tool(number - 1) else "<|im_start|>user", "\n<tool_response>\n")
    content = messages[number]["content"]
    text.say(content.strip() if strips else content)
    text.frame("\n</tool_response>", "" if is_tool(number + 1) else "<|im_end|>\n")


def write_calls(text: Text, message: dict[str, Any], before: str, key: str = "arguments") -> None:
    for call in message.get("tool_calls", []):
        text.frame(before + '<tool_call>\n{"name": "')
        text.say(call["function"]["name"])
        text.frame(f'", "{key}": ')
        text.say(json.dumps(call["function"]["arguments"], ensure_ascii=False))
        text.frame("}\n</tool_call>")
        before = "\n"


def learns(message: dict[str, Any]) -> bool:
    return message.get("weight", 1) == 1


def write_qwen25(case: Case) -> Text:
    text = Text()
    default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    messages = write_tools_of_qwen(text, case, default)
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            write_results(text, messages, number)
        elif message["role"] == "assistant":
            text.frame("<|im_start|>assistant\n")
            text.learns = learns(message)
            text.say(message["content"])
            write_calls(text, message, "\n" if message["content"] else "")
            text.end("<|im_end|>", "\n")
        else:
            write_turn_of_chatml(text, message)
    return text


def last_question(messages: list[dict[str, Any]]) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "user")


def write_qwen3(case: Case) -> Text:
    text = Text()
    messages = write_tools_of_qwen(text, case, "")
    last = last_question(messages)
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            write_results(text, messages, number)
        elif message["role"] == "assistant":
            thoughts = message.get("reasoning_content", "")
            text.frame("<|im_start|>assistant\n")
            text.learns = learns(message) and case.learn_thoughts
            content = message["content"]
            if number > last and (number == len(messages) - 1 or thoughts):
                if case.kwargs.get("enable_thinking") is False and not thoughts:
                    text.learns = False  # the prompt writes it
                text.frame("<think>\n")
                text.say(thoughts.strip("\n"))
                text.frame("\n</think>\n\n")
                content = content.lstrip("\n")
            text.learns = learns(message)
            text.say(content)
            write_calls(text, message, "\n" if message["content"] else "")
            text.end("<|im_end|>", "\n")
        else:
            write_turn_of_chatml(text, message)
    return text


def refuses_qwen3(case: Case) -> str:
    """What is learnt of a turn must stay in its context, and stand behind its own prompt."""
    is_off = case.kwargs.get("enable_thinking") is False
    last = last_question(case.messages)
    for number, message in enumerate(case.messages):
        if message["role"] != "assistant" or not learns(message):
            continue
        is_end = number == len(case.messages) - 1
        if is_off and message.get("reasoning_content"):
            return "closes the thoughts in its generation prompt|renders it differently"
        if not is_end and (is_off or number < last or not message.get("reasoning_content")):
            return "renders it differently once later turns follow"
    return ""


def write_qwen35(case: Case) -> Text:
    """The prompt opens the thoughts, and its end parts tokens."""
    text = Text()
    messages = write_tools_of_qwen(text, case, "", strips=True)
    last = last_question(messages)
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            write_results(text, messages, number, strips=True)
        elif message["role"] == "assistant":
            text.frame("<|im_start|>assistant\n")
            if number > last:
                text.frame("<think>\n")
                if learns(message):
                    text.frame("\0")  # where the prompt ends
                text.learns = learns(message) and case.learn_thoughts
                text.say(message.get("reasoning_content", "").strip())
                text.frame("\n</think>\n\n")
            text.learns = learns(message)
            content = message["content"].strip()
            text.say(content)
            for place, call in enumerate(message.get("tool_calls", [])):
                text.frame("\n\n" if content or place else "", "<tool_call>\n<function=")
                text.say(call["function"]["name"])
                text.frame(">\n")
                for name, value in call["function"]["arguments"].items():
                    text.frame("<parameter=")
                    text.say(name)
                    text.frame(">\n")
                    is_text = isinstance(value, str)
                    text.say(value if is_text else json.dumps(value, ensure_ascii=False))
                    text.frame("\n</parameter>\n")
                text.frame("</function>\n</tool_call>")
            text.end("<|im_end|>", "\n")
        else:
            write_turn_of_chatml(text, message | {"content": message["content"].strip()})
    return text


def refuses_qwen35(case: Case) -> str:
    last = last_question(case.messages)
    is_early = any(
        number < last and message["role"] == "assistant" and learns(message)
        for number, message in enumerate(case.messages)
    )
    return "opens the thoughts .* shows the turn without them" if is_early else ""


def write_llama31(case: Case) -> Text:
    text = Text()
    first, *others = case.messages
    has_system = first["role"] == "system"
    text.frame("<|begin_of_text|>" + LLAMA3["system"])
    text.frame("Environment: ipython\n" if case.tools else "")
    text.frame(DATED.removeprefix(LLAMA3["system"]))
    if case.tools:
        text.frame("You have access to the following functions.\n\n")
        for tool in case.tools:
            text.say(json.dumps(tool, ensure_ascii=False, indent=4))
            text.frame("\n\n")
    if has_system:
        text.say(first["content"].strip())
    text.frame("<|eot_id|>")
    for message in others if has_system else case.messages:
        role = {"tool": "ipython"}.get(message["role"], message["role"])
        text.frame(LLAMA3["user"].replace("user", role))
        text.learns = role == "assistant" and learns(message)
        if calls := message.get("tool_calls"):
            text.frame('{"name": "')
            text.say(calls[0]["function"]["name"])
            text.frame('", "parameters": ')
            text.say(json.dumps(calls[0]["function"]["arguments"], ensure_ascii=False))
            text.frame("}")
        elif role == "ipython":
            text.say(json.dumps(message["content"], ensure_ascii=False))
        else:
            text.say(message["content"].strip())
        text.end("<|eot_id|>")
    return text


def write_hermes(case: Case) -> Text:
    text = Text()
    text.frame("<|im_start|>system\nYou are a function calling AI model. Here are the tools: ")
    text.frame("<tools> ")
    for number, tool in enumerate(case.tools):
        function = tool["function"]
        text.frame('{"type": "function", "function": {"name": "')
        text.say(function["name"])
        text.frame('", "description": "')
        text.say(function["name"])
        text.frame("(")
        kinds = function["parameters"]["properties"].items()
        for place, (name, kind) in enumerate(kinds):
            text.say(f"{name}: {kind['type']}")
            text.frame("" if place == len(kinds) - 1 else ", ")
        text.frame(") - ")
        text.say(function["description"])
        text.frame('", "parameters": ')
        text.say(json.dumps(function["parameters"], ensure_ascii=False))
        text.frame("}}" + ("" if number == len(case.tools) - 1 else "\n"))
    text.frame(
        " </tools>Each call stands within <tool_call> tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-dict>}\n</tool_call><|im_end|>\n'
    )
    messages = case.messages
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            is_first = messages[number - 1]["role"] != "tool"
            is_last = number == len(messages) - 1
            text.frame("<|im_start|>tool\n" if is_first else "", "<tool_response>\n")
            text.say(message["content"])
            text.frame("\n</tool_response>" if is_last else "\n</tool_response>\n")
            is_end = is_last or messages[number + 1]["role"] != "tool"
            text.frame("<|im_end|>\n" if is_end else "")
        elif message["role"] == "assistant":
            text.frame("<|im_start|>assistant\n")
            text.learns = learns(message)
            text.say(message["content"])
            write_calls(text, message, "\n" if message["content"] else "")
            text.end("<|im_end|>", "\n")
        else:
            write_turn_of_chatml(text, message)
    return text


def write_mistral(case: Case, is_named: bool) -> Text:
    text = Text()
    first, *others = case.messages
    system = first["content"] if first["role"] == "system" else None
    messages = case.messages if system is None else others
    last = last_question(messages)
    text.frame("<s>")
    for number, message in enumerate(messages):
        if message["role"] == "user":
            if case.tools and number == last:
                text.frame("[AVAILABLE_TOOLS] ")
                text.say(json.dumps(case.tools, ensure_ascii=False))
                text.frame("[/AVAILABLE_TOOLS]")
            text.frame("[INST] ")
            if system is not None and number == last:
                text.say(system)
                text.frame("\n\n")
            text.say(message["content"])
            text.frame("[/INST]")
        elif message["role"] == "tool":
            text.frame("[TOOL_RESULTS]" if is_named else '[TOOL_RESULTS] {"content": ')
            text.say(message["tool_call_id"] if is_named else message["content"])
            text.frame("[TOOL_CONTENT]" if is_named else ', "call_id": "')
            text.say(message["content"] if is_named else message["tool_call_id"])
            text.frame(("" if is_named else '"}') + "[/TOOL_RESULTS]")
        else:
            text.learns = learns(message)
            write_answer_of_mistral(text, message, is_named)
            text.end("</s>")
    return text


def write_answer_of_mistral(text: Text, message: dict[str, Any], is_named: bool) -> None:
    calls = message.get("tool_calls")
    if not calls:
        text.frame(" ")
        text.say(message["content"].strip())
    elif is_named:
        text.say(message["content"])
        for call in calls:
            text.frame("[TOOL_CALLS]")
            text.say(call["function"]["name"])
            text.frame("[CALL_ID]")
            text.say(call["id"])
            text.frame("[ARGS]")
            text.say(json.dumps(call["function"]["arguments"], ensure_ascii=False))
    else:
        text.frame("[TOOL_CALLS] [")
        for number, call in enumerate(calls):
            text.say(json.dumps(call["function"], ensure_ascii=False)[:-1])
            text.frame(', "id": "')
            text.say(call["id"])
            text.frame('"}' + ("]" if number == len(calls) - 1 else ", "))


def refuses_mistral(case: Case) -> str:
    """Tools and system prompt move to the last question, so that an earlier turn loses them."""
    last = last_question(case.messages)
    moves = bool(case.tools) or case.messages[0]["role"] == "system"
    is_early = any(
        number < last and message["role"] == "assistant" and learns(message)
        for number, message in enumerate(case.messages)
    )
    return "renders it differently once later turns follow" if moves and is_early else ""


def write_marked(case: Case) -> Text:
    text = Text()
    if case.tools:
        text.frame("<|im_start|>tools\n")
        text.say(json.dumps(case.tools, ensure_ascii=False))
        text.frame("<|im_end|>\n")
    for message in case.messages:
        text.frame(f"<|im_start|>{message['role']}\n")
        text.learns = message["role"] == "assistant" and learns(message)
        text.say(message["content"])
        for call in message.get("tool_calls", []):
            text.frame(">>>")
            text.say(call["function"]["name"])
            text.frame("\n")
            text.say(json.dumps(call["function"]["arguments"], ensure_ascii=False))
            text.frame("\n")
        text.end("<|im_end|>", "\n")
    return text


def write_smollm3(case: Case) -> Text:
    text, is_off = Text(), case.kwargs.get("enable_thinking") is False
    text.frame("<|im_start|>system\nReasoning Mode: " + ("/no_think" if is_off else "/think"))
    text.frame("\n\n")
    first, *others = case.messages
    has_system = first["role"] == "system"
    if has_system:
        text.say(first["content"])
    text.frame("<|im_end|>\n")
    for message in others if has_system else case.messages:
        is_answer = message["role"] == "assistant"
        text.frame("<|im_start|>assistant\n" if is_answer else "<|im_start|>user\n")
        if not is_answer:
            text.say(message["content"])
            text.frame("<|im_end|>\n")
            continue
        text.frame("<think>\n\n</think>\n" if is_off else "")
        content = message["content"].lstrip("\n")
        thoughts = message.get("reasoning_content", "").strip()
        text.learns = learns(message) and case.learn_thoughts
        if thoughts:
            text.frame("<think>\n")
            text.say(thoughts)
            text.frame("\n</think>\n\n")
            content = message["content"].lstrip()
        text.learns = learns(message)
        text.say(content)
        text.end("<|im_end|>", "\n")
    return text


THINKING = ({}, {"enable_thinking": False})
QWEN_TOKENS = [*CHATML_TOKENS, "<tool_response>", "</tool_response>"]
TOOL_FAMILIES = {
    "qwen25": ToolFamily("qwen25", QWEN_TOKENS, "<|im_end|>", write_qwen25),
    "hermes": ToolFamily("hermes", QWEN_TOKENS, "<|im_end|>", write_hermes),
    "qwen3": ToolFamily(
        *("qwen3", QWEN_TOKENS, "<|im_end|>", write_qwen3, refuses_qwen3),
        thinks="reasoning_content",
        kwargs=THINKING,
    ),
    "qwen35": ToolFamily(
        *("qwen35", QWEN_TOKENS, "<|im_end|>", write_qwen35, refuses_qwen35),
        thinks="reasoning_content",
    ),
    "llama31": ToolFamily("llama31", LLAMA3_TOKENS, "<|eot_id|>", write_llama31, single=True),
    "mistral_tools": ToolFamily(
        *("mistral_tools", MISTRAL_TOKENS, "</s>", lambda case: write_mistral(case, False)),
        *(refuses_mistral, "prefixed"),
    ),
    "mistral_named": ToolFamily(
        *("mistral_named", MISTRAL_TOKENS, "</s>", lambda case: write_mistral(case, True)),
        *(refuses_mistral, "bytes"),
    ),
    "marked_tools": ToolFamily("marked_tools", CHATML_TOKENS, "<|im_end|>", write_marked),
    "smollm3": ToolFamily(
        *("smollm3", CHATML_TOKENS, "<|im_end|>", write_smollm3),
        thinks="content",
        kwargs=THINKING,
    ),
}


def load_core(family: ToolFamily) -> PreTrainedTokenizerBase:
    """Return a tokenizer of a family, without a template; the tags of a call are tokens."""
    first = family.tokens[0]
    plain = Family("", {}, family.stop, family.tokens, kind=family.kind)
    tokenizer = make_tokenizer(plain)
    tags = ("<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in tags])
    tokenizer.bos_token = first if first in ("<s>", "<|begin_of_text|>") else None
    return tokenizer


def read(family: ToolFamily, tokenizer: PreTrainedTokenizerBase, case: Case) -> Any:
    """Return the text of a conversation, its ids and labels, and whether a token is torn."""
    pieces = family.write(case).pieces
    text = "".join(piece for piece, _, _ in pieces)
    said, learnt, at = [], [], 0
    for piece, is_said, is_learnt in pieces:
        said += [(at, at + len(piece))] if is_said else []
        learnt += [(at, at + len(piece))] if is_learnt and piece else []
        at += len(piece)
    ids, spans, at = [], [], 0
    for found in re.finditer("|".join(map(re.escape, [*family.tokens, "\0"])) + "|$", text):
        if found[0] and any(start <= found.start() < stop for start, stop in said):
            continue
        plain = read_as_text(tokenizer, text[at : found.start()])
        ids += [number for number, _ in plain]
        spans += [(at + start, at + stop) for _, (start, stop) in plain]
        if found[0] and found[0] != "\0":
            ids.append(tokenizer.convert_tokens_to_ids(found[0]))
            spans.append(found.span())
        at = found.end()
    labels = [IGNORE_INDEX] * len(ids)
    firsts = {start for start, _ in learnt} - {stop for _, stop in learnt}
    for place, (start, stop) in enumerate(spans):
        if any(start < last and stop > first for first, last in learnt):
            labels[place] = ids[place]
    torn = any(start < first < stop for start, stop in spans for first in firsts)
    return text.replace("\0", ""), ids, labels, torn


WORDS = " ".join(CORPUS).split(" ")
PARTS = [
    *("", " ", "\n", "\n\n", '"', "\\", "{", "}", "é", "漢字", "🙂", "</tool_response>", "[/INST]"),
    *("<|im_end|>", "<|im_start|>user\n", "<|eot_id|>", "[TOOL_CALLS]", "[ARGS]", "</s>"),
    *("<tools>", "The answer is 42.", '{"name": "x"}', "<|im", "_end|>", "null", "true"),
]


def draw_case(draw: random.Random, family: ToolFamily) -> Case:
    """Return a conversation with calls and thoughts, in words and in what breaks masks."""

    def text(least: int = 0) -> str:
        parts = draw.choices([draw.choice(WORDS), *PARTS], k=draw.randrange(least, 5))
        return draw.choice(["", " "]).join(parts)

    def value(depth: int = 0) -> Any:
        kinds = [text, lambda: draw.randrange(-9, 99), lambda: draw.random() < 0.5, lambda: None]
        kinds += [lambda: round(draw.random(), 3), lambda: "1", lambda: "true"]
        if depth < 2:
            kinds += [lambda: [value(depth + 1) for _ in range(draw.randrange(3))]]
            kinds += [lambda: {text(): value(depth + 1) for _ in range(draw.randrange(3))}]
        return draw.choice(kinds)()

    names = draw.sample(["add", "get_weather", "search", "python-run", "f"], 3)
    tools = [make_tool(draw, name, text()) for name in names] if draw.random() < 0.8 else []
    calls = family.template != "smollm3"
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.3 and family.template not in ("marked_tools",):
        messages.append({"role": "system", "content": text() or "Be brief."})
    number = draw.randrange(10**6)

    def answer(called: int) -> dict[str, Any]:
        nonlocal number
        said = "" if called and draw.random() < 0.5 else text().strip() or "ok"
        turn: dict[str, Any] = {"role": "assistant", "content": said}
        if called:
            turn["tool_calls"] = []
        for _ in range(called):
            arguments = {k: value() for k in draw.sample(["a", "b_c", "d-e"], draw.randrange(4))}
            number += 1
            function = {"name": draw.choice(names), "arguments": arguments}
            turn["tool_calls"].append(
                {"id": f"c{number:08d}", "type": "function", "function": function}
            )
        if family.thinks and draw.random() < 0.5:
            turn["reasoning_content"] = text(1).strip() or "hm"
        if draw.random() < 0.2:
            turn["weight"] = 0
        return turn

    for _ in range(draw.choice([1, 1, 2])):
        messages.append({"role": "user", "content": text()})
        for _ in range(draw.choice([0, 1, 2]) if calls else 0):
            called = answer(1 if family.single else draw.choice([1, 1, 2]))
            if family.single or family.template == "mistral_tools":
                called["content"] = ""
            messages.append(called)
            messages += [
                {"role": "tool", "name": x["function"]["name"], "tool_call_id": x["id"],
                 "content": text()}
                for x in called["tool_calls"]
            ]  # fmt: skip
        messages.append(answer(0))
    messages[-1].pop("weight", None)
    kwargs = draw.choice(family.kwargs)
    if kwargs and family.template == "smollm3":
        for message in messages:
            message.pop("reasoning_content", None)
    tools = tools if calls else []
    case = Case(messages, tools, not family.thinks or draw.random() < 0.5, kwargs)
    if family.refuses(case) and draw.random() < 0.8:  # most are to be compared
        for message in messages[:-1]:
            message.update({"weight": 0} if message["role"] == "assistant" else {})
    return case


def make_tool(draw: random.Random, name: str, about: str) -> dict[str, Any]:
    kinds = ["string", "integer", "boolean", "object", "array"]
    properties = {
        key: {"type": draw.choice(kinds), "description": draw.choice(WORDS)}
        for key in draw.sample(["a", "b_c", "d-e"], draw.randrange(1, 4))
    }
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


def template_file(family: ToolFamily) -> str:
    return str(TEMPLATES / f"{family.template}.jinja")

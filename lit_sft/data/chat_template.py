"""What a chat template makes of a conversation, and what it writes around what is said.

For turns of role and content alone, a template that writes each content once, as it is or stripped,
writes the same around them whatever they say: one question a sequence of roles tells what, and a
row costs a comparison.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from jinja2 import Environment
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from lit_sft.data import answers
from lit_sft.data.answers import RenderedChat
from lit_sft.data.template_limits import FREE_TEXT, call_within_limits, check_length
from lit_sft.errors import InputError, require
from lit_sft.types import Message

ASKS_FOR_TODAY = re.compile(r"strftime_now\s*\(|=\s*strftime_now\b")
"""Also by another name: `{% set now = strftime_now %}`."""
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def render_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    marks: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and with `marks` the regions of its generation marks.

    The tools of the first message are handed to the template as its tools.

    Raises:
        InputError: If there is no template, it refuses the conversation, or takes too much for it.
    """
    template, where = template_of(tokenizer), tokenizer.name_or_path
    # Annotated as a string, it returns a pair of lists.
    function: Any = render_jinja_template
    turns: list[Any] = list(messages)
    tools: Any = turns[0].get("tools") if turns else None
    if tools is not None:
        turns[0] = {key: value for key, value in turns[0].items() if key != "tools"}
    render = partial(
        function,
        [turns],
        tools=tools or None,
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        return_assistant_tokens_mask=marks,
        **tokenizer.special_tokens_map,
    )
    try:
        texts, regions = call_within_limits(render, template, where)
    except InputError:
        raise
    except Exception as error:  # a template is a program of somebody else's, in Jinja
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"the chat template rejects the turns ({roles}): {error}") from error
    if len(texts[0]) > FREE_TEXT:
        check_length(texts[0], len(json.dumps(messages, default=repr)), where)
    return texts[0], regions[0] if marks else []


@lru_cache(maxsize=64)
def opens_thoughts(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Return whether the generation prompt after a question opens the thoughts.

    The template is an argument for the cache alone: the tokenizer may be given another.
    """
    try:
        prompt, _ = render_turns(tokenizer, [{"role": "user", "content": "a"}], True)
    except InputError:
        return False
    return answers.find_opening(prompt) >= 0


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template of a tokenizer that `load_tokenizer` has prepared.

    Raises:
        InputError: If there is none, or it prints today's date.
    """
    if tokenizer.chat_template is None:
        raise InputError("the tokenizer has no chat template; load it with load_tokenizer")
    named = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        raise InputError(
            f"the tokenizer has the chat templates {', '.join(sorted(named))} and no default; load "
            "it with load_tokenizer, and name one as chat_template"
        )
    template = str(tokenizer.get_chat_template())
    require(
        "strftime_now" not in template or not ASKS_FOR_TODAY.search(template),
        "the chat template prints today's date, so that a row has other tokens every day; load the "
        "tokenizer with load_tokenizer, which pins it, or write a date into the template",
    )
    return template


@lru_cache(maxsize=64)
def list_constants(template: str) -> list[str]:
    """Return the strings that a template's program names, such as `'</think>'`."""
    found = [
        value[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
        for _, kind, value in Environment().lex(template)
        if kind == "string"
    ]
    return sorted(set(found))


def find_pieces(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat
) -> tuple[Sequence[str], list[int]] | None:
    """Return what the template wrote before, between and after the contents, and where each starts.

    None where what it wrote is more than the contents, stripped or not, and these pieces.
    """
    pieces = read_pieces(
        tokenizer,
        str(tokenizer.chat_template),
        tuple([message["role"] for message in chat.messages]),
        chat.is_prompt,
    )
    starts = _lay_out(pieces, chat.messages, chat.written) if pieces else None
    return (pieces, starts) if pieces and starts else None


@lru_cache(maxsize=4096)
def read_pieces(
    tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...], is_prompt: bool
) -> tuple[str, ...] | None:
    """Return what the template writes before, between and after the contents of some turns.

    None where it does not write each of them once, in order. The template is an argument for the
    cache alone: the tokenizer may be given another.
    """
    probes = [f"zq{10**6 + number}" for number in range(len(roles))]
    turns: Any = [{"role": r, "content": x} for r, x in zip(roles, probes, strict=True)]
    try:
        text, _ = render_turns(tokenizer, turns, add_generation_prompt=is_prompt)
    except InputError:
        return None
    pattern = re.compile("|".join(probes))
    return tuple(pattern.split(text)) if pattern.findall(text) == probes else None


def _lay_out(pieces: Sequence[str], messages: Sequence[Message], text: str) -> list[int] | None:
    """Return where each piece starts, where `text` is the contents, stripped or not, and pieces."""
    if not text.startswith(pieces[0]):
        return None
    starts, at = [0], len(pieces[0])
    for message, behind in zip(messages, pieces[1:], strict=True):
        said = content = message["content"]
        if not (text.startswith(said, at) and text.startswith(behind, at + len(said))):
            for said in (content.strip(), content.rstrip(), content.lstrip()):
                if text.startswith(said, at) and text.startswith(behind, at + len(said)):
                    break
            else:
                return None
        at += len(said)
        starts.append(at)
        at += len(behind)
    return starts if at == len(text) else None

"""A conversation with its tools told in brief: what is proven of it holds of the whole.

Tools are most of the text of a row that has ten, and a row is rendered half a dozen times to be
proven: for the prompt of each turn, and with other words in it. So all of that is done with the
first tool alone, without description and parameters, and the whole is rendered once. The two
texts have to be the same before some place and behind another; between them, in the whole, have to
stand the tools, read back from their JSON, and no control token. Where that is not so, as in a
template that writes tools in words, nothing is told in brief.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_sft.data.answers import Abridged, RenderedChat, Span
from lit_sft.data.chat_template import render_turns
from lit_sft.data.control_tokens import find_control_tokens
from lit_sft.types import Message

DECODER = json.JSONDecoder()
MAX_TRIES = 64
"""Of braces that open no tool, such as those of a system prompt."""
NEAR = 64
"""Characters around the tools in which a control token may reach into them."""


def tell_in_brief(messages: Sequence[Message]) -> list[Message]:
    """Return messages with the name of the first tool, and nothing else of the tools."""
    first: Any = messages[0]["tools"][0]
    nothing = {"type": "object", "properties": {}}
    function = {"name": first["function"]["name"], "description": "", "parameters": nothing}
    return [{**messages[0], "tools": [{**first, "function": function}]}, *messages[1:]]


def tell_whole(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, messages: Sequence[Message]
) -> RenderedChat | None:
    """Return a conversation with its whole text, or None where it cannot be told from the brief.

    Args:
        tokenizer: With the template that rendered it.
        chat: Of what `tell_in_brief` returns, proven.
        messages: That it was told.
    """
    tools: Any = messages[0]["tools"]
    whole, _ = render_turns(tokenizer, messages)
    start = _count_common(whole, chat.written)
    behind = _count_common(whole[start:][::-1], chat.written[start:][::-1])
    end, tail = len(chat.written) - behind, len(whole) - behind
    # In front of the first word that is learnt, nothing but the template's own text may change.
    if not all(end <= place for span in chat.spans for place in span):
        return None
    first = max(0, start - NEAR)
    control = find_control_tokens(tokenizer).pattern.finditer(whole[first : tail + NEAR])
    if any(x.end() > start - first and x.start() < tail - first for x in control):
        return None
    if not _holds_tools(whole, tools):
        return None
    grown = tail - end
    return chat._replace(
        text=chat.text[:start] + whole[start:tail] + chat.text[end:],
        spans=[Span(span.start + grown, span.stop + grown) for span in chat.spans],
        cuts=[place + grown for place in chat.cuts],
        abridged=Abridged(chat.text, start, end, grown),
    )


def _count_common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    most = min(len(one), len(other))
    return bisect_left(range(1, most + 1), True, key=lambda n: one[:n] != other[:n])


def _holds_tools(text: str, tools: Sequence[Any]) -> bool:
    """Return whether the tools stand in a text, in order, each as JSON or as that of its function.

    Nothing else may be missing: what is read is compared with all that a tool has.
    """
    at, tries = 0, 0
    for tool in tools:
        while True:
            at = text.find("{", at)
            if at < 0 or tries > MAX_TRIES:
                return False
            try:
                value, end = DECODER.raw_decode(text, at)
            except (ValueError, RecursionError):
                value, end = None, at + 1
            if value in (tool, tool["function"]):
                at = end
                break
            at, tries = at + 1, tries + 1
    return True

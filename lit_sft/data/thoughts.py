"""Thoughts under whatever name, in the form that a template writes.

A row has them as `reasoning_content`, `reasoning` or `thinking`, or as `<think>` in the content.
They are one thing: where the template writes another form than the row has, they are handed to it
in that. Which one it writes is asked.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.chat_template import list_constants, render_turns, template_of
from lit_sft.errors import InputError
from lit_sft.types import Message

CONTENT = "content"


def unify_thoughts(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> Sequence[Message]:
    """Return messages whose thoughts are in a form that the template writes, if it writes any.

    Those of a message stay where they are if it holds different ones in two places.
    """
    for message in messages:
        if len(message) > 2 or answers.OPENING in message["content"]:
            break
    else:
        return messages
    forms = _find_forms(tokenizer, template_of(tokenizer))
    if not forms:
        return messages
    return [_unify(x, forms) if x["role"] == "assistant" else x for x in messages]


def _unify(message: Message, forms: Sequence[str]) -> Any:
    own: dict[str, Any] = dict(message)
    held = [key for key in answers.KEYS if str(own.get(key) or "").strip()]
    block = answers.BLOCK.match(message["content"])
    if (block and held) or len({str(own[key]).strip() for key in held}) > 1:
        return message
    plain = {key: x for key, x in own.items() if key not in answers.KEYS}
    if block and block[1].strip() and CONTENT not in forms:
        content = message["content"][block.end() :].lstrip("\n")
        return plain | {forms[0]: block[1].strip("\n"), CONTENT: content}
    if held and not set(held) & set(forms):
        thoughts = own[held[0]]
        if forms[0] != CONTENT:
            return plain | {forms[0]: thoughts}
        opened = f"{answers.OPENING}\n{str(thoughts).strip()}{answers.BETWEEN}"
        return plain | {CONTENT: opened + message["content"]}
    return message


@lru_cache(maxsize=64)
def _find_forms(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, ...]:
    """Return the keys whose thoughts the template writes before the last answer, and `content`.

    The last where the template knows the marks of thoughts, and writes those of a content: to
    another they are text like any other. The template is an argument for the cache alone.
    """
    ask: Any = {"role": "user", "content": "a"}
    say: dict[str, Any] = {"role": "assistant", "content": "zq2"}
    forms = [key for key in answers.KEYS if _writes(tokenizer, [ask, say | {key: "zq1"}])]
    knows = any("think>" in constant for constant in list_constants(template)) or re.search(
        r"</?think>", template
    )
    block = f"{answers.OPENING}\nzq1{answers.BETWEEN}zq2"
    if knows and _writes(tokenizer, [ask, say | {CONTENT: block}]):
        forms.append(CONTENT)
    return tuple(forms)


def _writes(tokenizer: PreTrainedTokenizerBase, turns: Any) -> bool:
    try:
        text, _ = render_turns(tokenizer, turns)
    except InputError:
        return False
    return re.search(r"zq1.*zq2", text, re.DOTALL) is not None

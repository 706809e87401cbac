"""What a chat template makes of a conversation, and of which template."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from jinja2 import Environment
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from lit_sft.data import answers
from lit_sft.data.limits import FREE_TEXT, call_within_limits, check_length
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

    Raises:
        InputError: If there is no template, it refuses the conversation, or takes too much for it.
    """
    template, where = template_of(tokenizer), tokenizer.name_or_path
    # Annotated as a string, it returns a pair of lists.
    function: Any = render_jinja_template
    render = partial(
        function,
        [list(messages)],
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

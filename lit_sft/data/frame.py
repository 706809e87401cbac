"""What a template writes around what is said.

For turns of role and content alone, a template that writes each content once, as it is or stripped,
writes the same around them whatever they say: one question a sequence of roles tells what, and a
row costs a comparison.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_sft.data.chat_template import render_turns
from lit_sft.data.render import RenderedChat
from lit_sft.errors import InputError
from lit_sft.types import Message


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

"""Marks of turns that are plain text to the tokenizer, which anybody can type.

Zephyr's `<|assistant|>`, Alpaca's `### Response:`, Vicuna's `USER:` and, to many tokenizers,
Mistral's `[INST]` are no tokens. A message that holds one reads as the end of a turn and the start
of another, and no encoding can tell the two apart: the rows are named, and may be left out.

The marks of a template are what it writes between harmless turns, line by line and without control
tokens. So that words of every day are none, a mark has a letter and a sign that is neither letter
nor space, 4 to 40 characters, and no more than four words. `user` behind `<|im_start|>` is not one.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.control_tokens import find_control_tokens
from lit_sft.data.frame import read_pieces
from lit_sft.errors import InputError
from lit_sft.types import Message

OnMarker = Literal["keep", "drop", "error"]

SHAPES = (
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "tool", "assistant", "user"),
)
"""Sequences of roles that show all marks. Some templates refuse some of them."""
LENGTHS, MOST_WORDS = range(4, 41), 4


def list_markers(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[str]:
    """Return the marks of turns, as plain text, that a conversation holds, each once."""
    pattern = _find_markers(tokenizer, str(tokenizer.chat_template))
    if pattern is None:
        return []
    texts = _list_texts(list(messages))
    return sorted({found[0] for text in texts for found in pattern.finditer(text)})


def refuse_markers(markers: Sequence[str], on_marker: OnMarker) -> None:
    """Raise `InputError` for a conversation that holds such marks, where that is an error."""
    if markers and on_marker == "error":
        raise InputError(
            f"a message holds {markers[0]!r}, which parts turns in the chat template and is plain "
            "text to the tokenizer, so that a model reads another turn there; remove it, set "
            "data.on_marker to drop or keep, or use a tokenizer that has it as a token"
        )


@lru_cache(maxsize=64)
def _find_markers(tokenizer: PreTrainedTokenizerBase, template: str) -> re.Pattern[str] | None:
    """Return a pattern of all marks, or None where there are none.

    The template is an argument for the cache alone: the tokenizer may be given another.
    """
    found = set()
    for roles in SHAPES:
        pieces = read_pieces(tokenizer, template, roles, is_prompt=roles[-1] == "user")
        if pieces:
            # Before the first turn may stand much else, but its mark is nearest to what it says.
            found |= {*list(_split(tokenizer, pieces[0]))[-1:]}
            found |= {mark for piece in pieces[1:] for mark in _split(tokenizer, piece)}
    marks = sorted(filter(_is_mark, found), key=lambda mark: (-len(mark), mark))
    # `USER:` is none in `SUPERUSER:`.
    starts = ["" if re.match(r"\W", mark) else r"(?<!\w)" for mark in marks]
    patterns = [start + re.escape(mark) for start, mark in zip(starts, marks, strict=True)]
    return re.compile("|".join(patterns)) if marks else None


def _split(tokenizer: PreTrainedTokenizerBase, piece: str) -> Iterator[str]:
    """Yield the lines of a piece between its control tokens and its marks of thoughts."""
    for part in find_control_tokens(tokenizer).pattern.split(piece):
        for line in re.split(rf"\n|{answers.OPENING}|{answers.CLOSING}", part):
            if line.strip():
                yield line.strip()


def _is_mark(text: str) -> bool:
    is_sign = any(map(str.isalpha, text)) and re.search(r"[^\w\s]", text)
    return bool(is_sign) and len(text) in LENGTHS and len(text.split()) <= MOST_WORDS


def _list_texts(value: Any) -> Iterator[str]:
    """Yield all texts within a value; a role spells nothing."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _list_texts(entry)
            if key not in ("role", "content"):
                yield str(key)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _list_texts(entry)

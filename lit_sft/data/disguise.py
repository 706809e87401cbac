"""Turns with harmless text: every letter of a conversation replaced by one that spells nothing.

What a template writes for them is its own, so that what is more in a row is what a message wrote.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.chat_template import list_constants, template_of
from lit_sft.data.control_tokens import find_control_tokens
from lit_sft.errors import require
from lit_sft.types import Message

STAND_INS = range(0xF0000, 0xFFFFE)
"""The code points of a plane that Unicode leaves to private use; none is white space."""
SPACES = "\u2003\u2002\u2001\u2000\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u1680\u205f"
"""White space that no template looks for, and that every one strips."""
HARMLESS = "z"
PLAIN_KEY = re.compile(r"[\w.-]+", re.ASCII)
"""A key of a message or of what it holds that spells nothing, and that a template may ask for."""
THOUGHTS = f"{answers.OPENING}|{answers.CLOSING}"


class Disguise:
    """Letters that stand for those of a conversation, each for one, and spaces for its spaces.

    The marks of thoughts stay in what the assistant says, as a template may part it there.

    Args:
        kinds: What stays where it is the whole of a field, and not of a content: words by which a
            template tells one kind of call or of message from another, such as `python`.
        kept: What stays besides, a pattern by the number of a message.
    """

    def __init__(self, kinds: frozenset[str], kept: Mapping[int, str] | None = None) -> None:
        self.kinds = kinds
        self.kept = kept or {}
        self.table: dict[int, int] = {}
        self.spaces: dict[int, int] = {}

    def put_on(self, messages: Sequence[Message]) -> list[Message]:
        """Return turns with all their texts disguised, but for keys that spell nothing."""
        disguised: list[Any] = []
        for number, message in enumerate(messages):
            own = [self.kept[number]] if number in self.kept else []
            own += [THOUGHTS] if message["role"] == "assistant" else []
            kept = re.compile("|".join(own) or "(?!)", re.IGNORECASE if number in self.kept else 0)
            disguised.append(
                {k: x if k == "role" else self._replace(x, kept, k) for k, x in message.items()}
            )
        return disguised

    def _replace(self, value: object, kept: re.Pattern[str], field: str = "") -> object:
        if isinstance(value, dict):
            return {
                key if PLAIN_KEY.fullmatch(str(key)) else self._replace(key, kept): self._replace(
                    entry, kept, str(key)
                )
                for key, entry in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._replace(entry, kept, field) for entry in value]
        if not isinstance(value, str) or (field, value) == ("type", "function"):
            return value
        if field != "content" and value in self.kinds:
            return value
        self._learn(value)
        parts, at = [], 0
        for found in kept.finditer(value):
            parts += [value[at : found.start()].translate(self.table), found[0]]
            at = found.end()
        return "".join([*parts, value[at:].translate(self.table)])

    def _learn(self, text: str) -> None:
        """Choose what stands for the letters of a text."""
        for letter in sorted(set(text)):
            if ord(letter) in self.table:
                continue
            if letter.isspace() and len(self.spaces) < len(SPACES):
                self.spaces[ord(SPACES[len(self.spaces)])] = ord(letter)
                self.table[ord(letter)] = ord(SPACES[len(self.spaces) - 1])
            else:
                used = len(self.table) - len(self.spaces)
                require(used < len(STAND_INS), "a row has more letters than a proof can hold")
                self.table[ord(letter)] = STAND_INS[used]

    def take_off(self, text: str) -> str:
        """Return a text with the letters that were there."""
        return text.translate({stand_in: letter for letter, stand_in in self.table.items()})

    def flatten(self, text: str, sign: str = HARMLESS) -> str:
        """Return a text of the same length with its spaces, and plain letters for all others.

        Args:
            text: With the disguise on.
            sign: What is to stand for what is neither letter, digit nor space.
        """
        plain = {x: HARMLESS if _is_of_word(a) else sign for a, x in self.table.items()}
        for stand_in, space in self.spaces.items():
            plain[stand_in] = chr(space)
        return text.translate(plain)


def _is_of_word(letter: int) -> bool:
    return chr(letter).isalnum() or letter == ord("_")


def disguise_for(
    tokenizer: PreTrainedTokenizerBase, kept: Mapping[int, str] | None = None
) -> Disguise:
    """Return a new disguise that leaves the template of a tokenizer the kinds that it knows."""
    return Disguise(_find_kinds(tokenizer, template_of(tokenizer)), kept)


@lru_cache(maxsize=8)
def _find_kinds(tokenizer: PreTrainedTokenizerBase, template: str) -> frozenset[str]:
    """Return the plain words of a template of which no control token is made."""
    tokens = "\n".join(find_control_tokens(tokenizer).texts)
    words = filter(PLAIN_KEY.fullmatch, list_constants(template))
    return frozenset(word for word in words if word not in tokens)


def list_texts(value: object) -> Iterator[str]:
    """Yield all texts within a value; a role spells nothing."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from list_texts(entry)
            if key not in ("role", "content"):
                yield str(key)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from list_texts(entry)

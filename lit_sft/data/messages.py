"""Marks of turns that messages hold: `list_markers`.

Marks are what parts turns and is plain text to the tokenizer, which anybody can type: Zephyr's
`<|assistant|>`, Alpaca's `### Response:`, Vicuna's `USER:` and, to many tokenizers, Mistral's
`[INST]`. A message that holds one reads as the end of a turn and the start of another, and no
encoding can tell the two apart: the rows are named, and may be left out. What counts is how the
tokens of a row read: a tokenizer may drop an accent of `### Résponse:`, and a template may make `#`
of `@`. So the marks in them are compared with those of the same turns with harmless text.

The marks of a template are what it writes between harmless turns, line by line and without control
tokens. So that words of every day are none, a mark has a letter and a sign that is neither letter
nor space, 4 to 40 characters, and no more than four words. `user` behind `<|im_start|>` is not one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.chat_template import read_pieces, render_turns
from lit_sft.data.control_tokens import find_control_tokens, plain_backend
from lit_sft.data.disguise import disguise_for, list_texts
from lit_sft.data.message_checks import strip_keys
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
WORD = "zq1"


class _Markers(NamedTuple):
    """The marks of a template."""

    spelt: re.Pattern[str]
    """As it writes them."""
    read: re.Pattern[str]
    """As their tokens read."""
    anywhere: re.Pattern[str]
    """Likewise, also behind a letter."""
    names: dict[str, str]
    """What the template writes for what the tokens read."""


def list_markers(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], input_ids: Sequence[int]
) -> list[str]:
    """Return the marks of turns, as plain text, that a conversation holds, each once.

    Args:
        tokenizer: With its template.
        messages: The conversation. What the template does not write of it is searched as well.
        input_ids: `[tokens]`, all that it is encoded as.
    """
    markers = _find_markers(tokenizer, str(tokenizer.chat_template))
    if markers is None:
        return []
    found = {x[0] for text in list_texts(list(messages)) for x in markers.spelt.finditer(text)}
    return sorted(found | _list_read(tokenizer, markers, strip_keys(messages), input_ids))


def _list_read(
    tokenizer: PreTrainedTokenizerBase,
    markers: _Markers,
    turns: Sequence[Message],
    input_ids: Sequence[int],
) -> set[str]:
    """Return the marks that are more often in the tokens of a conversation than in a harmless one.

    The frame of plain turns has them all, wherever they stand, in all rows but those worth a look.
    """
    backend, template = plain_backend(tokenizer), str(tokenizer.chat_template)
    text = backend.decode(list(input_ids), skip_special_tokens=False)
    if all(len(turn) == 2 and turn["content"].strip() for turn in turns):
        roles = tuple([turn["role"] for turn in turns])
        frame = _count_in_frame(tokenizer, template, roles)
        if frame is not None and Counter(markers.anywhere.findall(text)) <= frame:
            return set()
    disguise = disguise_for(tokenizer)
    written, _ = render_turns(tokenizer, disguise.put_on(turns))
    harmless = _read_back(tokenizer, disguise.flatten(written, sign="."))
    more = Counter(markers.read.findall(text)) - Counter(markers.read.findall(harmless))
    return {markers.names[mark] for mark in more}


@lru_cache(maxsize=4096)
def _count_in_frame(
    tokenizer: PreTrainedTokenizerBase, template: str, roles: tuple[str, ...]
) -> Counter[str] | None:
    """Return how often the template writes each mark around the contents of some turns."""
    pieces = read_pieces(tokenizer, template, roles, is_prompt=False)
    markers = _find_markers(tokenizer, template)
    if pieces is None or markers is None:
        return None
    return Counter(markers.anywhere.findall(_read_back(tokenizer, WORD.join(pieces))))


def _read_back(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text as its tokens read, such as in lower case."""
    backend = plain_backend(tokenizer)
    ids = backend.encode(text, add_special_tokens=False).ids
    return str(backend.decode(ids, skip_special_tokens=False))


def refuse_markers(markers: Sequence[str], on_marker: OnMarker) -> None:
    """Raise `InputError` for a conversation that holds such marks, where that is an error."""
    if markers and on_marker == "error":
        raise InputError(
            f"a message holds {markers[0]!r}, which parts turns in the chat template and is plain "
            "text to the tokenizer, so that a model reads another turn there; remove it, set "
            "data.on_marker to drop or keep, or use a tokenizer that has it as a token"
        )


@lru_cache(maxsize=64)
def _find_markers(tokenizer: PreTrainedTokenizerBase, template: str) -> _Markers | None:
    """Return all marks, or None where there are none.

    The template is an argument for the cache alone: the tokenizer may be given another.
    """
    found = set()
    for roles in SHAPES:
        pieces = read_pieces(tokenizer, template, roles, is_prompt=roles[-1] == "user")
        if pieces:
            # Before the first turn may stand much else, but its mark is nearest to what it says.
            found |= {*list(_split(tokenizer, pieces[0]))[-1:]}
            found |= {mark for piece in pieces[1:] for mark in _split(tokenizer, piece)}
    marks = sorted(filter(_is_mark, found))
    names = {_read_back(tokenizer, mark).strip(): mark for mark in marks}
    # Any letter that a tokenizer does not know reads as a mark that it does not know.
    unknown = tokenizer.unk_token or "\n"
    names = {read: mark for read, mark in names.items() if unknown not in read and _is_mark(read)}
    if not marks:
        return None
    return _Markers(_match(marks), _match(names), _match(names, is_apart=False), names)


def _match(marks: Iterable[str], is_apart: bool = True) -> re.Pattern[str]:
    """Return a pattern of marks, the longest first; `USER:` is none in `SUPERUSER:`."""
    ordered = sorted(marks, key=lambda mark: (-len(mark), mark))
    starts = [r"(?<!\w)" if is_apart and re.match(r"\w", mark) else "" for mark in ordered]
    patterns = [start + re.escape(mark) for start, mark in zip(starts, ordered, strict=True)]
    return re.compile("|".join(patterns) or "(?!)")


def _split(tokenizer: PreTrainedTokenizerBase, piece: str) -> Iterator[str]:
    """Yield the lines of a piece between its control tokens and its marks of thoughts."""
    for part in find_control_tokens(tokenizer).pattern.split(piece):
        for line in re.split(rf"\n|{answers.OPENING}|{answers.CLOSING}", part):
            if line.strip():
                yield line.strip()


def _is_mark(text: str) -> bool:
    is_sign = any(map(str.isalpha, text)) and re.search(r"[^\w\s]", text)
    return bool(is_sign) and len(text) in LENGTHS and len(text.split()) <= MOST_WORDS

"""A rendered conversation, and where in it an answer stands and the thoughts before it.

Some generation prompts open the thoughts: they end in `<think>` and a line break. A model then says
its thoughts, the closing mark, and the answer, whatever the template makes of a turn that is past.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from lit_sft.types import Message

KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold the thoughts before its content."""
OPENING, CLOSING = "<think>", "</think>"
BLOCK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
"""What Qwen3's template sets before the last answer, empty where there are no thoughts."""
OPENED_BLOCK = re.compile(r"(.*?)</think>", re.DOTALL)
"""The rest of a block that the generation prompt has opened."""
BETWEEN = "\n</think>\n\n"
"""What closes the thoughts where the template does not say it: models of this kind all write it."""


class Span(NamedTuple):
    """Where an assistant turn stands in the rendered text, in characters."""

    start: int
    """The first character that the model must generate."""
    stop: int
    """The first character of the stop token."""


class Abridged(NamedTuple):
    """Where a conversation that was told its tools in brief is another than the whole."""

    text: str
    """Of the brief one."""
    start: int
    """Up to where the two are the same."""
    end: int
    """From where in `text` they are the same again."""
    grown: int
    """By how much more characters the whole has between."""

    def find_place(self, place: int) -> int | None:
        """Return where in the whole a place of `text` is, or None if it is between."""
        if self.start <= place < self.end:
            return None
        return place if place < self.start else place + self.grown


class RenderedChat(NamedTuple):
    """A conversation as a model sees it."""

    text: str
    spans: list[Span]
    """One a supervised turn of the assistant, in order."""
    is_broken_up: bool
    """Whether `text` holds `BREAKER`."""
    messages: Sequence[Message]
    """What the template was given."""
    learnt: frozenset[int]
    """The numbers of the messages that `spans` are of; of none, in a prompt."""
    written: str
    """What the template made of it: `text`, unless the thoughts of the last turn were added."""
    added: str | None = None
    """These thoughts, without white space around them."""
    cuts: Sequence[int] = ()
    """Where a generation prompt ends that opens the thoughts: no token may reach across."""
    abridged: Abridged | None = None
    """Of what `messages` tells in brief, where `text` is the whole."""

    @property
    def is_prompt(self) -> bool:
        """Whether the text ends in the generation prompt, for a model to go on."""
        return not self.learnt


class Reading(NamedTuple):
    """A message, divided into what is thought and what is answered."""

    thoughts: str
    """Without white space around them."""
    answer: str


def find_opening(prompt: str) -> int:
    """Return where a generation prompt opens the thoughts, or -1 where it does not."""
    tail = prompt.rstrip()
    return len(tail) - len(OPENING) if tail.endswith(OPENING) else -1


def find_prompt_end(prompt: str, text: str) -> int | None:
    """Return where a prompt ends in a text that begins with it but for white space, or None.

    White space in it may differ, but for the last: Hermes' template ends the result of a call with
    one line break fewer where it comes last, so that the prompt behind it has one fewer, too.
    """
    words, behind = "".join(prompt.split()), prompt[len(prompt.rstrip()) :]
    if not words or not "".join(text.split()).startswith(words):
        return None
    places = (place for place, letter in enumerate(text) if not letter.isspace())
    end = next(islice(places, len(words) - 1, None)) + 1
    return end + len(behind) if text.startswith(behind, end) else None


def closes_thoughts(prompt: str) -> bool:
    """Return whether a generation prompt ends in a block of thoughts, as where they are off."""
    return prompt.rstrip().endswith(CLOSING)


def match_own(message: Message, is_opened: bool) -> re.Match[str] | None:
    """Return the thoughts that open the content of a message, its first group.

    Args:
        message: Of the assistant.
        is_opened: Whether its generation prompt opens the thoughts, so that a content without other
            thoughts may go on with them, up to the closing mark.
    """
    content = message["content"]
    may_go_on = is_opened and not _list_thoughts(message)
    return BLOCK.match(content) or (OPENED_BLOCK.match(content) if may_go_on else None)


def list_readings(message: Message, is_opened: bool) -> list[Reading]:
    """Return the ways in which a message can be read, the likeliest first.

    Args:
        message: Of the assistant.
        is_opened: As for `match_own`.
    """
    content = message["content"]
    if own := match_own(message, is_opened):
        return [Reading(own[1].strip(), content[own.end() :])]
    # An empty block is what some templates write where there are no thoughts that they know.
    return [Reading(thoughts, content) for thoughts in [*_list_thoughts(message), ""]]


def _list_thoughts(message: Message) -> list[str]:
    """Return what the keys for thoughts hold."""
    return [text for key in KEYS if (text := str(message.get(key) or "").strip())]


def list_places(
    text: str, start: int, message: Message, is_opened: bool
) -> Iterator[tuple[int, str]]:
    """Yield where the answer may stand in `text[start:]`, and which answer.

    Args:
        text: As the template writes it.
        start: Behind the generation prompt.
        message: Of the assistant.
        is_opened: Whether that prompt opens the thoughts; the answer then stands behind their end.
    """
    if block := (OPENED_BLOCK if is_opened else BLOCK).match(text, start):
        for thoughts, answer in list_readings(message, is_opened):
            if block[1].strip() == thoughts:
                yield block.end(), answer
    if not is_opened:
        yield start, message["content"]


def list_bare_places(text: str, start: int, reading: Reading) -> Iterator[tuple[int, str]]:
    """Yield where an answer may stand behind the head of a turn, whatever became of its thoughts.

    Args:
        text: As the template writes it.
        start: Behind the generation prompt less what opens the thoughts.
        reading: Of the message.
    """
    for pattern in (BLOCK, OPENED_BLOCK):
        block = pattern.match(text, start)
        if block and block[1].strip() in ("", reading.thoughts):
            yield block.end(), reading.answer
    yield start, reading.answer


class Place(NamedTuple):
    """Where a turn stands in the rendered text, in characters."""

    start: int
    """Behind the block of thoughts, if there is one, or else behind the generation prompt."""
    said: int
    """Where the answer begins, and white space before its calls, if there is no answer."""
    stop: int
    """The first character of the stop token."""

    def find_start(self, text: str, prompted: int, learn_thoughts: bool) -> int:
        """Return where what is learnt begins of a turn behind a prompt that ends at `prompted`."""
        if learn_thoughts or self.start == prompted:
            return prompted
        return len(text) - len(text[self.said :].lstrip())


def locate_answer(
    text: str,
    places: Iterable[tuple[int, str]],
    stops: re.Pattern[str],
    find_end: Callable[[int], int | None] | None = None,
) -> Place | None:
    """Return the first place that has its answer, its calls and then a stop token.

    After the stop token nothing but white space and further control tokens may follow.

    Args:
        text: Up to the end of the turn.
        places: As `list_places` yields them.
        stops: Matches a token that may end the turn.
        find_end: Says where the calls of the turn end that begin behind its answer, if it has any.
    """
    for place, at, answered in find_said(text, places):
        end = find_end(answered) if find_end else answered
        if end is None:
            continue
        stop = len(text) - len(text[end:].lstrip())
        if stops.match(text, stop) and not stops.sub("", text[stop:]).strip():
            return Place(place, at, stop)
    return None


def find_said(text: str, places: Iterable[tuple[int, str]]) -> Iterator[tuple[int, int, int]]:
    """Yield the place, the start and the end of answers, which the template may have stripped."""
    for place, answer in places:
        for said in (answer, answer.rstrip(), answer.lstrip(), answer.strip()):
            at = text.find(said, place)
            if at >= 0 and not text[place:at].strip():
                yield place, at, at + len(said)

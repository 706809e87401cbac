"""Messages to text, and where in the text the assistant speaks. No token ids.

The chat template decides what an assistant turn is. Where it has `{% generation %}` marks, a turn
is what stands between them; elsewhere it is what the template adds to its own generation prompt
when it renders the turn. Either must hold what the message says, and then a stop token. A prompt
that opens the thoughts goes on with those of the message, also where the template leaves them out.

A message that spells a control token, such as `<|eot_id|>`, could forge a turn. A character that no
text holds is put inside the spelling before the template sees it, so that the control tokens of
the rendering are the template's own; the character is taken out again when the text is tokenised.
That they are is proven on the tokens, by `lit_sft.data.forgery`.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.abridged_tools import tell_in_brief, tell_whole
from lit_sft.data.answer_errors import explain_answer, explain_rewriting
from lit_sft.data.answers import Place, RenderedChat, Span
from lit_sft.data.calls import explain_calls, find_calls_end
from lit_sft.data.chat_template import GENERATION_MARK, render_turns, template_of
from lit_sft.data.control_tokens import break_up_control_tokens, find_control_tokens
from lit_sft.data.generation_marks import check_marked_prompt, check_marks, marks_hold_prompt
from lit_sft.data.message_checks import check_messages, strip_keys
from lit_sft.data.thoughts import unify_thoughts
from lit_sft.errors import InputError, require
from lit_sft.types import Message


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], learn_thoughts: bool = True
) -> RenderedChat:
    """Render a whole conversation, and find every assistant turn in it.

    Args:
        tokenizer: With its template.
        messages: Turns in order.
        learn_thoughts: Whether the thoughts before an answer are of its turn; otherwise they are
            shown, and what closes them, too.

    Raises:
        InputError: If a message is malformed, the template refuses or rewrites the conversation, or
            a turn is not rendered as the answer and then a stop token.
    """
    check_messages(messages)
    plain = unify_thoughts(tokenizer, strip_keys(messages))
    safe = break_up_control_tokens(tokenizer, plain)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    supervised = [i for i in turns if messages[i].get("weight") != 0]
    require(bool(supervised), "every assistant turn has weight 0, so nothing to learn")
    how = (supervised, safe is not plain, learn_thoughts)
    if safe[0].get("tools"):
        with suppress(InputError):  # which the whole tells of, if it is one of its
            brief = render_safe_turns(tokenizer, tell_in_brief(safe), *how)
            if whole := tell_whole(tokenizer, brief, safe):
                return whole
    return render_safe_turns(tokenizer, safe, *how)


def render_safe_turns(
    tokenizer: PreTrainedTokenizerBase,
    safe: Sequence[Message],
    supervised: Iterable[int],
    is_broken_up: bool,
    learn_thoughts: bool = True,
) -> RenderedChat:
    """Render turns whose control tokens are broken up, and find those that are supervised.

    Raises:
        InputError: As `render_conversation`.
    """
    turns = [i for i, message in enumerate(safe) if message["role"] == "assistant"]
    is_marked = GENERATION_MARK.search(template_of(tokenizer)) is not None
    text, regions = render_turns(tokenizer, safe, marks=is_marked)
    if is_marked:
        require(
            len(regions) == len(turns),
            f"the template's generation marks surround {len(regions)} spans, but the assistant "
            f"speaks {len(turns)} times",
        )
        check_marked_prompt(tokenizer, template_of(tokenizer))
    marked = dict(zip(turns, regions, strict=True)) if is_marked else {}
    chat = RenderedChat(text, [], is_broken_up, safe, frozenset(supervised), text)
    asks = not is_marked or marks_hold_prompt(tokenizer, template_of(tokenizer))
    for turn in sorted(supervised):
        if asks:
            chat = _add_turn(tokenizer, chat, turn, marked.get(turn), learn_thoughts)
        else:
            start, end = marked[turn]
            place = _find_answer(tokenizer, text[:end], start, safe[turn], turn, is_marked=True)
            chat.spans.append(Span(place.find_start(text, start, learn_thoughts), place.stop))
    return chat


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> RenderedChat:
    """Render what comes before the answer that ends a conversation, if one does; and the prompt.

    Raises:
        InputError: If a message is malformed, or the template refuses the conversation.
    """
    check_messages(messages, is_prompt=True)
    is_answered = messages[-1]["role"] == "assistant"
    turns = strip_keys(messages[:-1] if is_answered else messages)
    turns = unify_thoughts(tokenizer, turns)
    safe = break_up_control_tokens(tokenizer, turns)
    text, _ = render_turns(tokenizer, safe, add_generation_prompt=True)
    return RenderedChat(text, [], safe is not turns, safe, frozenset(), text)


def _add_turn(
    tokenizer: PreTrainedTokenizerBase,
    chat: RenderedChat,
    turn: int,
    marked: tuple[int, int] | None,
    learn_thoughts: bool,
) -> RenderedChat:
    """Find an assistant turn behind the generation prompt that a model would be given for it."""
    message = chat.messages[turn]
    prompt, _ = render_turns(tokenizer, chat.messages[:turn], add_generation_prompt=True)
    opening = answers.find_opening(prompt)
    through = chat.written
    if turn < len(chat.messages) - 1:
        through, _ = render_turns(tokenizer, chat.messages[: turn + 1])
    elif opening >= 0 and not through.startswith(prompt):
        return _complete(tokenizer, chat, turn, prompt, marked, learn_thoughts)
    same = through.startswith(prompt)
    at = len(prompt) if same else answers.find_prompt_end(prompt, through)
    if at is None:
        raise explain_rewriting(message, turn, prompt)
    place = _find_answer(tokenizer, through, at, message, turn, opening >= 0, marked is not None)
    if not chat.written.startswith(through[: place.stop]):
        raise explain_rewriting(message, turn, prompt)
    if marked:
        check_marks(marked, Span(at, place.stop), turn)
    chat.spans.append(Span(place.find_start(through, at, learn_thoughts), place.stop))
    return chat._replace(cuts=[*chat.cuts, at]) if opening >= 0 else chat


def _complete(
    tokenizer: PreTrainedTokenizerBase,
    chat: RenderedChat,
    turn: int,
    prompt: str,
    marked: tuple[int, int] | None,
    learn_thoughts: bool,
) -> RenderedChat:
    """Set the thoughts between the prompt that opens them and the answer of the last turn.

    The template writes what a server hands on of a turn that is past, without its thoughts. What
    the model must say is defined all the same: they, what closes them, and the rest as written.
    """
    message, written = chat.messages[turn], chat.written
    head = answers.find_opening(prompt)
    if not written.startswith(prompt[:head]):
        raise explain_rewriting(message, turn, prompt)
    reading = answers.list_readings(message, is_opened=True)[0]
    require(
        answers.CLOSING not in reading.thoughts,
        f"message {turn} (assistant): its thoughts hold {answers.CLOSING}, which would end them; "
        "remove it",
    )
    places = list(answers.list_bare_places(written, head, reading))
    found = _locate(tokenizer, written, places, message, marked is not None)
    if found is None:
        raise _explain(tokenizer, written, head, places, message, turn)
    if marked:
        check_marks(marked, Span(found.start, found.stop), turn)
    opened = prompt + reading.thoughts + _ask_what_closes(tokenizer, template_of(tokenizer))
    behind = written[found.start :].lstrip("\n")
    text = opened + behind
    moved = len(text) - len(written)
    start = len(prompt) if learn_thoughts else found.find_start(written, -1, False) + moved
    return chat._replace(
        text=text,
        spans=[*chat.spans, Span(start, found.stop + moved)],
        added=reading.thoughts,
        cuts=[*chat.cuts, len(prompt)],
    )


@lru_cache(maxsize=64)
def _ask_what_closes(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return what the template writes between thoughts and answer where it knows thoughts.

    The template is an argument for the cache alone: the tokenizer may be given another.
    """
    ask: Message = {"role": "user", "content": "a"}
    answer: Any = {"role": "assistant", "content": "zq2", answers.KEYS[0]: "zq1"}
    try:
        text, _ = render_turns(tokenizer, [ask, answer])
    except InputError:
        return answers.BETWEEN
    found = re.search(r"zq1(\s*</think>\s*)zq2", text)
    return found[1] if found else answers.BETWEEN


def _find_answer(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    start: int,
    message: Message,
    turn: int,
    is_opened: bool = False,
    is_marked: bool = False,
) -> Place:
    """Find what a message says and calls in `text[start:]`, and its stop token.

    White space that the template sets around the content is the model's to generate, too, and so is
    a block of the message's thoughts before it, or the rest of one that the prompt opens.
    """
    places: Iterable[tuple[int, str]] = answers.list_places(text, start, message, is_opened)
    found = _locate(tokenizer, text, places, message, is_marked)
    if found is None:
        places = answers.list_places(text, start, message, is_opened)
        raise _explain(tokenizer, text, start, places, message, turn)
    return found


def _locate(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    places: Iterable[tuple[int, str]],
    message: Message,
    is_marked: bool,
) -> Place | None:
    stops = find_control_tokens(tokenizer).stops
    if not message.get("tool_calls"):
        return answers.locate_answer(text, places, stops)
    find_end = partial(find_calls_end, text, message=message, is_marked=is_marked)
    return answers.locate_answer(text, places, stops, find_end)


def _explain(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    start: int,
    places: Iterable[tuple[int, str]],
    message: Message,
    turn: int,
) -> InputError:
    """Return the error of a turn that is not what the message says."""
    if message.get("tool_calls"):
        return explain_calls(text[start:], message, turn)
    return explain_answer(tokenizer, text, start, places, turn)

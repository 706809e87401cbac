"""Messages to text, and where in the text the assistant speaks. No token ids.

The chat template decides what an assistant turn is. Where it has `{% generation %}` marks, a turn
is what stands between them; elsewhere it is what the template adds to its own generation prompt
when it renders the turn. Either must hold what the message says, and then a stop token.

A message that spells a control token, such as `<|eot_id|>`, could forge a turn. A character that no
text holds is put inside the spelling before the template sees it, so that the control tokens of
the rendering are the template's own; the character is taken out again when the text is tokenised.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from lit_sft.data.messages import check_messages, strip_keys
from lit_sft.errors import InputError, require
from lit_sft.types import Message

BREAKER = "\ufdd0"
"""Stands inside a control token that a message spells: a code point that Unicode keeps unused."""
THINKING = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
"""What Qwen3's template sets before the last answer, empty where there are no thoughts."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold the thoughts before its content."""
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Span(NamedTuple):
    """Where an assistant turn stands in the rendered text, in characters."""

    start: int
    """The first character that the model must generate."""
    stop: int
    """The first character of the stop token."""


class RenderedChat(NamedTuple):
    """A conversation as the template writes it."""

    text: str
    spans: list[Span]
    """One a supervised turn of the assistant, in order."""
    is_broken_up: bool
    """Whether `text` holds `BREAKER`."""
    messages: Sequence[Message]
    """What the template was given."""
    learnt: frozenset[int]
    """The numbers of the messages that `spans` are of."""


class ControlTokens(NamedTuple):
    """The tokens that no message may write."""

    pattern: re.Pattern[str]
    """Matches one, the longest first."""
    ids: frozenset[int]
    bos_id: int | None


@lru_cache(maxsize=8)
def find_control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the special tokens of a tokenizer, which must not change from then on."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted(added | set(tokenizer.all_special_tokens), key=lambda x: (-len(x), x))
    pattern = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    vocabulary = tokenizer.get_vocab()
    ids = frozenset(vocabulary[token] for token in tokens)
    return ControlTokens(pattern, ids, tokenizer.bos_token_id)


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> RenderedChat:
    """Render a whole conversation, and find every assistant turn in it.

    Raises:
        InputError: If a message is malformed, the template refuses or rewrites the conversation, or
            a turn is not rendered as the answer and then a stop token.
    """
    check_messages(messages)
    plain = strip_keys(messages)
    safe = _break_up_control_tokens(tokenizer, plain)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    supervised = [i for i in turns if messages[i].get("weight") != 0]
    require(bool(supervised), "every assistant turn has weight 0, so nothing to learn")
    control = find_control_tokens(tokenizer).pattern
    if GENERATION_MARK.search(_template_of(tokenizer)):
        text, regions = render_turns(tokenizer, safe, marks=True)
        require(
            len(regions) == len(turns),
            f"the template's generation marks surround {len(regions)} spans, but the assistant "
            f"speaks {len(turns)} times",
        )
        spans = [
            _find_answer(text[:end], start, safe[turn], turn, control)
            for turn, (start, end) in zip(turns, regions, strict=True)
            if turn in supervised
        ]
    else:
        text, _ = render_turns(tokenizer, safe)
        spans = [_find_turn(tokenizer, safe, turn, text, control) for turn in supervised]
    return RenderedChat(text, spans, safe is not plain, safe, frozenset(supervised))


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> RenderedChat:
    """Render what comes before the last assistant turn, generation prompt included.

    Raises:
        InputError: If a message is malformed, or the template refuses the conversation.
    """
    check_messages(messages)
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    turns = strip_keys(messages[:last])
    safe = _break_up_control_tokens(tokenizer, turns)
    text, _ = render_turns(tokenizer, safe, add_generation_prompt=True)
    return RenderedChat(text, [], safe is not turns, safe, frozenset())


def _find_turn(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    turn: int,
    text: str,
    control: re.Pattern[str],
) -> Span:
    """Find an assistant turn behind the generation prompt that a model would be given for it."""
    prompt, _ = render_turns(tokenizer, messages[:turn], add_generation_prompt=True)
    is_last = turn == len(messages) - 1
    through = text if is_last else render_turns(tokenizer, messages[: turn + 1])[0]
    rewritten = InputError(
        f"message {turn} (assistant): the chat template renders it differently once later turns "
        "follow, or not after its own generation prompt, so what the model must say is not "
        "defined; give it weight 0, or set another data.chat_template"
    )
    if not through.startswith(prompt):
        raise rewritten
    span = _find_answer(through, len(prompt), messages[turn], turn, control)
    if not text.startswith(through[: span.stop]):
        raise rewritten
    return span


def _find_answer(
    text: str, start: int, message: Message, turn: int, control: re.Pattern[str]
) -> Span:
    """Find what a message says in `text[start:]`, and its stop token.

    The content may be stripped as the template strips it. White space that the template sets around
    it is the model's to generate, too, and so is a block of the message's thoughts before it. After
    the stop token nothing but white space and further control tokens may follow.
    """
    content, after = message["content"], start
    if block := THINKING.match(text, start):
        own = THINKING.match(content)
        # An empty block is what some templates write where there are none, or none that they know.
        thoughts = [own[1]] if own else ["", *(str(message.get(field, "")) for field in THOUGHTS)]
        if block[1].strip() in [thought.strip() for thought in thoughts]:
            content, after = content[own.end() if own else 0 :], block.end()
    for said in (content, content.rstrip(), content.lstrip(), content.strip()):
        at = text.find(said, after)
        if at < 0 or text[after:at].strip():
            continue
        tail = text[at + len(said) :]
        stop = len(text) - len(tail.lstrip())
        if control.match(text, stop) and not control.sub("", text[stop:]).strip():
            return Span(start, stop)
    raise InputError(
        f"message {turn} (assistant): expected the answer and then a stop token, but the chat "
        f"template renders {text[start:]!r:.120}; use another data.chat_template, or give the turn "
        "weight 0"
    )


def _break_up_control_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> Sequence[Message]:
    """Return `messages` itself, or, where they spell control tokens, a copy with `BREAKER`s."""
    control = find_control_tokens(tokenizer).pattern
    if not any(len(x) > 2 or control.search(x["content"]) for x in messages):
        return messages
    safe: list[Message] = [_break_up(message, control) for message in messages]
    if safe == list(messages):
        return messages
    return safe


def _break_up(value: Any, control: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        require(BREAKER not in value, f"a message holds U+{ord(BREAKER):X}; remove it")
        return control.sub(lambda found: found[0][0] + BREAKER + found[0][1:], value)
    if isinstance(value, dict):
        return {_break_up(k, control): _break_up(entry, control) for k, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_break_up(entry, control) for entry in value]
    return value


def render_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    marks: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and with `marks` the regions of its generation marks.

    Raises:
        InputError: If there is no template, or it refuses the conversation.
    """
    try:
        # Annotated as a string, it returns a pair of lists.
        render: Any = render_jinja_template
        texts, regions = render(
            [list(messages)],
            chat_template=_template_of(tokenizer),
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=marks,
            **tokenizer.special_tokens_map,
        )
    except InputError:
        raise
    except Exception as error:  # a template is a program of somebody else's, in Jinja
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"the chat template rejects the turns ({roles}): {error}") from error
    return texts[0], regions[0] if marks else []


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        raise InputError("the tokenizer has no chat template; load it with load_tokenizer")
    template = str(tokenizer.get_chat_template())
    require(
        "strftime_now(" not in template,
        "the chat template prints today's date, so that a row has other tokens every day; load the "
        "tokenizer with load_tokenizer, which pins it, or write a date into the template",
    )
    return template

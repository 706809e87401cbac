"""Messages to token ids and labels, with the loss mask proven for every row.

The tokenizer's chat template decides what an assistant turn is. The text of turn `i` is what the
template adds when it renders `messages[: i + 1]` rather than `messages[:i]` with the generation
prompt, or, where the template has `{% generation %}` marks, what stands between them. That text is
found in the tokens by character offsets, cut after its stop token, decoded again and compared with
what the message says. A row for which any of this fails is an error, never a silent mask.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from lit_sft.errors import InputError, require, suggest
from lit_sft.types import IGNORE_INDEX, ROLES, Example, Message

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Span(NamedTuple):
    """Where an assistant turn stands in the rendered text, in characters."""

    start: int
    """The first character that the model must generate."""
    stop: int
    """The first character of the stop token."""


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Example:
    """Encode a conversation, and prove that exactly the assistant's words carry loss.

    Args:
        tokenizer: A fast tokenizer with a chat template, as `load_tokenizer` returns it.
        messages: Turns in order; any number of them may be the assistant's.

    Returns:
        `input_ids [tokens]` and unshifted `labels [tokens]`: the assistant's turns with the stop
        token of each, `IGNORE_INDEX` elsewhere.

    Raises:
        InputError: If a message is malformed, the template refuses or rewrites the conversation,
            a turn ends without a stop token, or a span does not decode to what was said.
    """
    check_messages(messages)
    _check_no_control_tokens(tokenizer, messages)
    text = render_chat(tokenizer, messages)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids: list[int] = encoding["input_ids"]
    starts = [start for start, _ in encoding["offset_mapping"]]
    bos_count = input_ids.count(tokenizer.bos_token_id) if tokenizer.bos_token else 0
    require(bos_count < 2, f"the template writes {bos_count} BOS tokens; a row must have one")

    labels = [IGNORE_INDEX] * len(input_ids)
    for span in find_assistant_spans(tokenizer, messages, text):
        first, last = bisect_left(starts, span.start), bisect_left(starts, span.stop)
        _prove_span(tokenizer, input_ids[first : last + 1], text[span.start : span.stop])
        labels[first : last + 1] = input_ids[first : last + 1]
    return Example(input_ids, labels)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Encode what comes before the last assistant turn, ready for the model to answer.

    Returns:
        Token ids `[tokens]`, rendered by the same template as training, generation prompt included.
    """
    check_messages(messages)
    _check_no_control_tokens(tokenizer, messages)
    asked = [m["role"] for m in messages]
    turns = messages[: len(asked) - 1 - asked[::-1].index("assistant")]
    text = render_chat(tokenizer, turns, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `InputError` unless every message has a known role and a string as its content."""
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, dict) or set(message) < {"role", "content"}:
            raise InputError(f"{where}: expected {{'role': …, 'content': …}}, got {message!r:.80}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            hint = suggest(str(role), ROLES)
            raise InputError(f"{where}: unknown role {role!r}; use one of {ROLES}.{hint}")
        if not isinstance(content, str):
            raise InputError(
                f"{where} ({role}): content must be a string, got {type(content).__name__}"
            )
    require(
        any(message["role"] == "assistant" for message in messages),
        "the conversation has no assistant turn, so nothing to learn",
    )


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
) -> str:
    """Return the text that the tokenizer's template makes of a conversation.

    Raises:
        InputError: If the template refuses the conversation; the message carries its reason.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template is a program of somebody else's, in Jinja
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"the chat template rejects the turns ({roles}): {error}") from error
    return str(text)


def find_assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str
) -> list[Span]:
    """Return the span of every assistant turn in `text`, the rendering of `messages`.

    Raises:
        InputError: If a turn cannot be found as the message says it, followed by a stop token.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if GENERATION_MARK.search(str(tokenizer.chat_template)):
        regions = _find_marked_regions(tokenizer, messages, turns)
    else:
        regions = [_find_turn_region(tokenizer, messages, turn, text) for turn in turns]
    control = _match_control_token(tokenizer)
    return [
        _cut_after_answer(text, start, end, messages[turn]["content"], turn, control)
        for turn, (start, end) in zip(turns, regions, strict=True)
    ]


def _find_turn_region(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turn: int, text: str
) -> tuple[int, int]:
    prompt = render_chat(tokenizer, messages[:turn], add_generation_prompt=True)
    is_last = turn == len(messages) - 1
    through = text if is_last else render_chat(tokenizer, messages[: turn + 1])
    require(
        text.startswith(through) and through.startswith(prompt),
        f"message {turn} (assistant): the chat template renders it differently once later turns "
        "follow, or not after its own generation prompt, so what the model must say is not defined",
    )
    return len(prompt), len(through)


def _find_marked_regions(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turns: list[int]
) -> list[tuple[int, int]]:
    _, regions = render_jinja_template(
        [list(messages)],
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    require(
        len(regions[0]) == len(turns),
        f"the template's generation marks surround {len(regions[0])} spans, but the assistant "
        f"speaks {len(turns)} times",
    )
    return regions[0]


def _cut_after_answer(
    text: str, start: int, end: int, content: str, turn: int, control: re.Pattern[str]
) -> Span:
    """Find `content`, stripped as the template strips it, and the stop token right after it."""
    for said in (content, content.rstrip(), content.lstrip(), content.strip()):
        at = text.find(said, start, end)
        if at < 0 or text[start:at].strip():
            continue
        stop = at + len(said)
        token = control.match(text, stop, end)
        if token and not text[token.end() : end].strip():
            return Span(start, stop)
    raise InputError(
        f"message {turn} (assistant): expected the answer and then a stop token, but the chat "
        f"template renders {text[start:end]!r:.120}"
    )


def _prove_span(tokenizer: PreTrainedTokenizerBase, ids: list[int], said: str) -> None:
    decoded = tokenizer.decode(
        ids[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    require(
        decoded == said and ids[-1:] != [] and ids[-1] in tokenizer.added_tokens_decoder,
        f"the supervised tokens decode to {decoded!r:.120}, but the assistant said {said!r:.120}",
    )


@lru_cache(maxsize=8)
def _match_control_token(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def _check_no_control_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> None:
    """A row that spells a control token could forge a turn: it is refused, not obeyed."""
    control = _match_control_token(tokenizer)
    for number, message in enumerate(messages):
        if found := control.search(message["content"]):
            raise InputError(
                f"message {number} ({message['role']}): the text holds the control token "
                f"{found.group()!r}, which would be read as a turn boundary; remove it"
            )

"""What is wrong with a turn that is not rendered as its answer and then a stop token."""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.errors import InputError
from lit_sft.types import Message


def explain_answer(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    start: int,
    places: Iterable[tuple[int, str]],
    turn: int,
) -> InputError:
    """Return the error of a turn whose text is not the answer and then a stop token."""
    what = f"message {turn} (assistant): expected the answer and then a stop token, but the chat"
    if "<|channel|>" in text[start:]:
        return InputError(
            f"message {turn} (assistant): the chat template writes channels (<|channel|>), which "
            "cannot be proven yet; set another data.chat_template"
        )
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    for _, at, end in answers.find_said(text, places):
        last = text[end:].strip()
        if at == end or not re.fullmatch(r"\S{1,30}", last):
            continue
        if last not in added:
            return InputError(
                f"{what} template ends it with {last!r}, which is text to this tokenizer and no "
                "special token; set a data.chat_template that ends a turn with one, such as "
                f"{tokenizer.eos_token!r}"
            )
        if not added[last].special:
            return InputError(
                f"{what} template ends it with {last!r}, which the tokenizer does not mark as "
                "special; mark it so in the added_tokens of tokenizer.json and in the "
                "added_tokens_decoder of tokenizer_config.json, or set another data.chat_template"
            )
    return InputError(
        f"{what} template renders {text[start:]!r:.120}; use another data.chat_template, or give "
        "the turn weight 0"
    )


def explain_rewriting(message: Message, turn: int, prompt: str) -> InputError:
    """Return the error of a turn that does not stand behind its prompt, or does not stay there."""
    what = f"message {turn} (assistant): the chat template"
    if answers.find_opening(prompt) >= 0:
        return InputError(
            f"{what} opens the thoughts in its generation prompt, and shows the turn without them "
            "once later turns follow, so what the model must say would not stay in its context; "
            "give it weight 0, train on the last turn alone, or set another data.chat_template"
        )
    has_thoughts = bool(answers.list_readings(message, is_opened=False)[0].thoughts)
    if has_thoughts and answers.closes_thoughts(prompt):
        return InputError(
            f"{what} closes the thoughts in its generation prompt (thinking is off), but the "
            "message has some; remove them, or set a data.chat_template that leaves them open"
        )
    return InputError(
        f"{what} renders it differently once later turns follow, or not after its own generation "
        "prompt, so what the model must say is not defined; give it weight 0, or set another "
        "data.chat_template"
    )

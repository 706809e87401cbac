"""What the `{% generation %}` marks of a template surround, and where its prompt ends."""

from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from lit_sft.data import answers
from lit_sft.data.answers import Span
from lit_sft.data.chat_template import opens_thoughts, render_turns
from lit_sft.errors import InputError, require
from lit_sft.types import Message


@lru_cache(maxsize=64)
def check_marked_prompt(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Raise `InputError` where a marked turn does not stand behind the generation prompt.

    The template is an argument for the cache alone: the tokenizer may be given another.
    """
    turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text, _ = render_turns(tokenizer, turns)
        prompt, _ = render_turns(tokenizer, turns[:1], add_generation_prompt=True)
    except InputError:  # some want a system turn
        return
    require(
        text.startswith(prompt) or answers.find_opening(prompt) >= 0,
        f"the chat template's generation prompt ends in {prompt[-40:]!r}, but it writes "
        f"{text[-60:]!r} for an answer, so a model would be asked by another prompt than it has "
        "learnt; make them alike in the template, or set another data.chat_template",
    )


@lru_cache(maxsize=64)
def marks_hold_prompt(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Return whether a marked turn does not begin where the generation prompt ends.

    So it is where the prompt opens the thoughts, or the marks surround what the prompt writes, such
    as the head of the turn or a block without thoughts: that is not the model's to generate. The
    template is an argument for the cache alone.
    """
    turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if opens_thoughts(tokenizer, template):
        return True
    try:
        _, regions = render_turns(tokenizer, turns, marks=True)
        prompt, _ = render_turns(tokenizer, turns[:1], add_generation_prompt=True)
    except InputError:  # some want a system turn
        return False
    return bool(regions) and regions[0][0] < len(prompt)


def check_marks(marked: tuple[int, int], span: Span, turn: int) -> None:
    """Raise `InputError` where the template's marks leave out some of what has to be said."""
    if not marked[0] <= span.start <= span.stop < marked[1]:
        raise InputError(
            f"message {turn} (assistant): the generation prompt opens the thoughts, but the "
            "template's generation marks do not surround all that follows it; move them around "
            "the thoughts, the answer and the stop token, or remove them"
        )

"""Rows to prompts that a model has to answer, and the tokens that end an answer."""

import random
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lit_sft.data.encode import encode_chat, encode_prompt, naming
from lit_sft.data.splits import MissingSplit, read_conversations, read_split
from lit_sft.errors import require
from lit_sft.tasks.base import ChatTask, NamedRow
from lit_sft.tasks.chat_file import ChatFile
from lit_sft.tasks.tool_turns import gather_tools
from lit_sft.types import IGNORE_INDEX, Message, Prompt, Split, ValRows

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHOTS_SEED = 0
"""Fixed, so that every run sees the same examples before the question."""
PROBE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
"""A conversation that shows what the template writes around what is said."""


def make_prompts(
    task: ChatTask,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    val_rows: ValRows,
    num_shots: int = 0,
) -> list[Prompt]:
    """Render the rows of a split by the template of training, up to the last assistant turn.

    Args:
        task: Where the rows come from.
        split: As `lit_sft.data.splits.read_split` reads it.
        tokenizer: As `load_tokenizer` returns it.
        val_rows: How many rows `"val"` has.
        num_shots: Solved conversations of `train` before each question, the same for all rows.

    Raises:
        InputError: If a row cannot be read or rendered; the message names it.
    """
    shots = _draw_shots(task, val_rows, num_shots) if num_shots else []
    return _render(task, read_split(task, split, val_rows), tokenizer, shots)


def _render(
    task: ChatTask,
    rows: Sequence[NamedRow],
    tokenizer: PreTrainedTokenizerBase,
    shots: Sequence[Message] = (),
) -> list[Prompt]:
    prompts = []
    for number, (name, messages) in enumerate(read_conversations(task, rows)):
        with naming(name):
            input_ids = encode_prompt(tokenizer, gather_tools([*shots, *messages]))
        prompts.append(Prompt(number, input_ids, messages, rows[number][1]))
    return prompts


def find_prompts(
    task: ChatTask, where: str, tokenizer: PreTrainedTokenizerBase, val_rows: ValRows
) -> list[Prompt]:
    """Return the prompts of a split of a task, or of a file of any chat format.

    Args:
        task: Whose split it is.
        where: `train`, `val` or `test`, or the path of a file, with answers or without.
        tokenizer: As `load_tokenizer` returns it.
        val_rows: As `make_prompts` has it.

    Raises:
        InputError: If there is no such split or file, or a row cannot be read or rendered.
    """
    if split := next((split for split in SPLITS if split == where), None):
        try:
            return make_prompts(task, split, tokenizer, val_rows)
        except MissingSplit as error:
            raise MissingSplit(f"{error}; --data.predict_on names another, or a file") from error
    require(
        Path(where).expanduser().is_file(),
        f"data.predict_on: expected {', '.join(SPLITS)} or a file, and there is no file {where!r}",
    )
    asked = ChatFile(str(Path(where).expanduser()))
    rows = [row for _, row in read_split(asked, "train", 0)]
    return _render(asked, [(f"{where} row {n}", row) for n, row in enumerate(rows)], tokenizer)


def decode_answer(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Return the tokens of an answer as text, to the letter.

    Special tokens are written out: left out, what the model wrote after one would continue what it
    wrote before, and `12<|begin_of_text|>11` would read `1211`.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        token_ids: Of a `Generation`, which ends before its stop token.
    """
    return str(
        tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def find_turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that the template writes after an answer."""
    return [label for label in encode_chat(tokenizer, PROBE).labels if label != IGNORE_INDEX][-1]


def find_stop_ids(tokenizer: PreTrainedTokenizerBase, *configs: object) -> list[int]:
    """Return the tokens that end an answer, sorted.

    They are what the template writes after one, the tokenizer's end token, the end token that it
    came with, if `load_tokenizer` has set another, and those that the configs name. A base ends
    with its own, whatever the template does, such as `<|end_of_text|>` where a turn ends with
    `<|eot_id|>`.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        *configs: The model's config and generation config; their `eos_token_id` is an id, a list
            of ids, or None.
    """
    stops = {find_turn_end(tokenizer), tokenizer.eos_token_id}
    if came_with := tokenizer.init_kwargs.get("eos_token"):
        stops.add(tokenizer.get_vocab().get(str(came_with)))
    for config in configs:
        named = getattr(config, "eos_token_id", None)
        stops.update(named if isinstance(named, (list, tuple)) else [named])
    return sorted(stops - {None})


def find_chat_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the template writes into a conversation."""
    written = set(encode_chat(tokenizer, PROBE).input_ids)
    return sorted(written & set(tokenizer.added_tokens_decoder))


def _draw_shots(task: ChatTask, val_rows: ValRows, num_shots: int) -> list[Message]:
    rows = read_split(task, "train", val_rows)
    require(
        num_shots <= len(rows),
        f"num_shots={num_shots}, but train has {len(rows)} rows to draw them from",
    )
    drawn = random.Random(SHOTS_SEED).sample(rows, num_shots)
    return [turn for _, messages in read_conversations(task, drawn) for turn in messages]


def split_answer(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[str]:
    """Return what each token adds to the text of an answer, which they are together.

    Of a character of several tokens, all is with the last. Where a text does not begin with that of
    fewer tokens, as with some decoders, it is empty.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        token_ids: Of a `Generation`.
    """
    pieces, before = [], ""
    for end in range(1, len(token_ids) + 1):
        text = decode_answer(tokenizer, token_ids[:end])
        if text.endswith("\ufffd") and end < len(token_ids):
            pieces.append("")
        elif text.startswith(before):
            pieces.append(text[len(before) :])
            before = text
        else:
            return []
    return pieces

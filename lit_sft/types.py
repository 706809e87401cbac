"""The words that every room of the package shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -100
"""The label of a position that carries no loss; `torch.nn.functional.cross_entropy`'s own."""

ROLES = ("system", "user", "assistant", "tool")

MEANING = re.compile(
    r"call|tool|function|think|thought|reason|refusal|document|context|citation|image|audio|video"
    r"|^(name|parts)$"
)
"""In the names of a message's fields, beside role and content, that say something to the model."""

Split = Literal["train", "val", "test"]

ValRows = Literal["auto"] | int
"""How many rows are held out of `train`; `auto` leaves it to their number."""

Grade = bool | float | None
"""Of an answer: right or wrong; how much of it is right, a float from 0 to 1; None for no answer,
which counts as wrong."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    """One of `ROLES`."""
    content: str
    reasoning_content: NotRequired[str]
    """Of an assistant turn: thoughts before the content, for templates that know of them."""
    tools: NotRequired[list[dict[str, Any]]]
    """Of the first turn: what the assistant may call, `{"type": "function", "function": {…}}` each,
    with `parameters` that are a JSON schema."""
    tool_calls: NotRequired[list[dict[str, Any]]]
    """Of an assistant turn: calls behind the content, `{"function": {"name", "arguments"}}` each,
    with arguments that are an object."""
    weight: NotRequired[int]
    """Of an assistant turn: 1 to learn it, 0 only to show it."""


class Example(NamedTuple):
    """One conversation as the model sees it."""

    input_ids: list[int]
    """Token ids, `[tokens]`."""
    labels: list[int]
    """Unshifted: `input_ids` where the assistant speaks, `IGNORE_INDEX` elsewhere, `[tokens]`."""


class Batch(TypedDict):
    """Examples laid side by side and padded on the right, or end to end.

    The counts are Python integers, made where the batch is made, so that the training loop never
    waits for the device to learn them.
    """

    input_ids: Tensor
    """int64 `[batch, tokens]`; the batch is 1 where rows lie end to end."""
    labels: Tensor
    """int64 `[batch, tokens]`, unshifted; `IGNORE_INDEX` outside assistant turns."""
    cu_seq_lens: NotRequired[Tensor]
    """int32 `[rows + 1]`, only where rows lie end to end: where each starts, and the end."""
    position_ids: NotRequired[Tensor]
    """int64 `[1, tokens]`, likewise: from 0 in each row."""
    max_length: NotRequired[int]
    """Tokens of the longest row, likewise."""
    num_tokens: int
    """Tokens that are not padding."""
    num_supervised: int
    """Labels that carry loss once shifted."""


Window = list[Batch]
"""What one rank sees in one optimizer step: the micro-batches whose gradients are summed."""


class Prompt(NamedTuple):
    """A conversation up to where the assistant has to answer."""

    row: int
    """Its number within the split."""
    input_ids: list[int]
    """`[tokens]`, generation prompt included."""
    messages: list[Message]
    """The whole conversation; the last assistant turn is the reference answer."""
    record: Mapping[str, Any]
    """The row itself, as the task gave it and grades it."""

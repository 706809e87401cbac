"""A cache of keys and values that has room for whole answers from the start, and how it is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import CacheLayerMixin

DECODE = "lit_sft_decode"
"""The name under which transformers knows `attend_cached`. Masks are not made for it."""


class UnfitModelError(Exception):
    """A model attends in a way that is not known here."""


class Slots(CacheLayerMixin):
    """Keys and values of one layer, `[rows, kv_heads, places, head_dim]`, written in place."""

    is_sliding = False
    is_compileable = True

    def __init__(self, rows: int, places: int, place: Tensor) -> None:
        super().__init__()
        self.shape, self.place = (rows, places), place
        self.rows, self.seen, self.is_reading = slice(0, rows), places, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room, once it is known of what."""
        rows, places = self.shape
        for name, states in (("keys", key_states), ("values", value_states)):
            _, heads, _, width = states.shape
            setattr(self, name, states.new_zeros(rows, heads, places, width))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write what is new, and return all that may be looked at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys: Any = self.keys
        values: Any = self.values
        keys, values = keys[self.rows], values[self.rows]
        if self.is_reading:  # a prompt, which ends where all do, and sees nothing else
            keys[:, :, self.seen - key_states.shape[2] : self.seen] = key_states
            values[:, :, self.seen - value_states.shape[2] : self.seen] = value_states
            return key_states, value_states
        keys.index_copy_(2, self.place, key_states)
        values.index_copy_(2, self.place, value_states)
        return keys[:, :, : self.seen], values[:, :, : self.seen]

    def keep(self, rows: Tensor) -> None:
        """Move rows, int64 `[kept]`, to the front."""
        for held in (self.keys, self.values):
            if held is not None:
                held[: len(rows)] = held[rows]

    def get_seq_length(self) -> int:
        """Return 0: positions are given."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the places, of which none is left out."""
        return self.shape[1], 0

    def get_max_length(self) -> int:
        """Return the places."""
        return self.shape[1]

    get_max_cache_shape = get_max_length  # its name before transformers 5.24


def attend_cached(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    seen: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend to the prompt, or with one token a row to all that the cache holds of it.

    Args:
        module: The attention layer.
        query: `[rows, heads, tokens, head_dim]`.
        key: `[rows, kv_heads, places, head_dim]`.
        value: Likewise.
        attention_mask: Must be None.
        scaling: Of the scores.
        dropout: Must be 0.
        seen: bool `[rows, 1, tokens, places]`.
        sliding_window: Must be None, or not less than the places.
        **kwargs: What transformers passes besides.

    Returns:
        `[rows, tokens, heads, head_dim]`, and no attention weights.

    Raises:
        UnfitModelError: If it is asked for anything that it would ignore.
    """
    is_more = any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "head_mask"))
    window = sliding_window or key.shape[2]
    if seen is None or attention_mask is not None or dropout or is_more or window < key.shape[2]:
        raise UnfitModelError
    rows, heads, tokens, width = query.shape
    groups = key.shape[1]
    if tokens > 1:
        key, value = (x.repeat_interleave(heads // groups, 1) for x in (key, value))
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
        return mixed.transpose(1, 2).contiguous(), None
    # The heads of a group are the rows of one product, which reads their keys once.
    own = query.reshape(rows * groups, heads // groups, width)
    scores = _multiply_in_float32(own, key.flatten(0, 1).transpose(1, 2)) * scaling
    scores = scores.view(rows, groups, heads // groups, -1).masked_fill(~seen, float("-inf"))
    shares = scores.softmax(-1).to(value.dtype).flatten(0, 1)
    return (shares @ value.flatten(0, 1)).view(rows, 1, heads, -1), None


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """Let a model attend by `attend_cached` for a while."""
    config = model.get_decoder().config
    own = exchange_attention(config, DECODE)
    try:
        yield
    finally:
        exchange_attention(config, own)


def exchange_attention(config: Any, name: str | None = None) -> str:
    """Return how a model attends, by the name that transformers has for it.

    Args:
        config: Of the decoder.
        name: How it attends from now on; None changes nothing.
    """
    own: str = config._attn_implementation
    if name is not None:
        config._attn_implementation = name
    return own


def _multiply_in_float32(left: Tensor, right: Tensor) -> Tensor:
    """Return `[batch, n, m]`, which is not rounded to the dtype of its factors."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


AttentionInterface.register(DECODE, attend_cached)

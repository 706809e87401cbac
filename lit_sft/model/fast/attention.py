"""Attention over packed rows, each of which sees itself alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lit_sft.evaluation.static_cache import exchange_attention

if TYPE_CHECKING:
    from lit_sft.model.loss import CausalLM

PACKED = "lit_sft_packed"
"""The name under which transformers knows `attend_packed`. Masks are not made for it."""

NO_BOUNDARIES = (
    "packed attention needs the boundaries of its rows, and no mask; a forward without them would "
    "let rows see each other"
)


def use_attention(model: "CausalLM", packed: bool) -> None:
    """Choose how a model attends from now on, in recomputed forwards too.

    Args:
        model: A model of transformers, or a `peft.PeftModel` around one.
        packed: Whether the batches to come are packed, with `cu_seq_lens`. Others take the
            model's own way, which is not the same for all: one may need sinks that another lacks.
    """
    decoder = model.get_decoder()
    own = vars(decoder).setdefault("own_attention", exchange_attention(decoder.config))
    exchange_attention(decoder.config, PACKED if packed else own)


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention within each row.

    Args:
        module: The attention layer.
        query: `[batch, heads, tokens, head_dim]`, a batch of 1, in any float dtype.
        key: `[batch, kv_heads, tokens, head_dim]`, of the same dtype.
        value: Likewise.
        attention_mask: Must be None: the boundaries say it all.
        scaling: Of the scores.
        dropout: The share of the attention weights that is zeroed.
        cu_seq_lens_q: int32 `[rows + 1]`, where each row starts, and the end of the last.
        max_length_q: Tokens of the longest row.
        sliding_window: How many tokens one sees, itself included; None for all before it.
        **kwargs: What transformers passes besides, such as the same boundaries for the keys.

    Returns:
        `[batch, tokens, heads, head_dim]` in the dtype of the query, and no attention weights.

    Raises:
        RuntimeError: Without boundaries, or with anything that would be ignored: rows would see
            each other, and nothing else would tell.
    """
    _require_nothing_unknown(kwargs)
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None:
        raise RuntimeError(NO_BOUNDARIES)
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        # Rotary positions of float32 weights, which are trained, leave query and key in float32.
        query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        bounds = cu_seq_lens_q, max_length_q
        return _attend_at_once(query, key, value, *bounds, scaling, window), None
    lengths = cu_seq_lens_q.diff().tolist()
    return _attend_row_by_row(query, key, value, lengths, scaling, dropout, window), None


def _require_nothing_unknown(options: Mapping[str, object]) -> None:
    unknown = [name for name in ("softcap", "s_aux", "head_mask") if options.get(name) is not None]
    if unknown:
        raise RuntimeError(f"packed attention has no {', '.join(unknown)}, which this model needs")


def _attend_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend within all rows by one kernel of CUDA; shapes are those of `attend_packed`."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.squeeze(0).transpose(0, 1) for x in _repeat_heads(query, key, value))
    to_the_left = window - 1 if window else -1  # -1 is all of them
    mixed: Any = varlen_attn(
        q, k, v, starts, starts, longest, longest, window_size=(to_the_left, 0), scale=scaling
    )
    attended: Tensor = mixed.unsqueeze(0)
    return attended


def _attend_row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    scaling: float,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Attend in float32: on a CPU, its backward is several times as fast as that of bfloat16."""
    rows = zip(*(torch.split(x.float(), lengths, dim=2) for x in (query, key, value)), strict=True)
    with torch.autocast(query.device.type, enabled=False):
        mixed = [
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=_see_back(q.shape[2], window, q.device) if window else None,
                dropout_p=dropout,
                is_causal=not window,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            for q, k, v in rows
        ]
    return torch.cat(mixed, dim=2).transpose(1, 2).to(query.dtype)


def _see_back(length: int, window: int, device: torch.device) -> Tensor:
    """Return which tokens each sees, bool `[length, length]`: itself and `window - 1` before it."""
    places = torch.arange(length, device=device)
    back = places[:, None] - places
    return (back >= 0) & (back < window)


def _repeat_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


AttentionInterface.register(PACKED, attend_packed)

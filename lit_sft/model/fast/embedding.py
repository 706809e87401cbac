"""The rows of an embedding or a head: the frozen ones, and the few that are trained beside them.

PEFT's own layer copies the whole matrix in every forward, and its backward fills another with the
gradient of a few rows. What is here touches those rows alone.
"""

from functools import lru_cache
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from peft import PeftModel


class TokenRows(NamedTuple):
    """A matrix with a row a token, some of which stand elsewhere."""

    weight: Tensor
    """`[vocabulary, hidden]`, frozen; the rows of `token_ids` in it are out of use."""
    token_ids: tuple[int, ...]
    """In ascending order."""
    rows: Tensor
    """`[len(token_ids), hidden]`: what stands for those rows, and may ask for a gradient."""

    def token_ids_on(self, device: torch.device) -> Tensor:
        """Return the token ids as int64 `[len(token_ids)]`; the device is waited for once."""
        return _on_device(self.token_ids, device)


def find_frozen_layer(layer: nn.Module) -> nn.Embedding | nn.Linear:
    """Return the layer as it was loaded: the `weight` of PEFT's wrapper is a trained copy.

    Args:
        layer: An embedding or a head, or PEFT's wrapper of one with trained rows.
    """
    adapter = _find_token_adapter(layer)
    return cast("nn.Embedding | nn.Linear", layer if adapter is None else adapter.base_layer)


def _find_token_adapter(layer: Any) -> Any:
    """Return PEFT's layer inside its wrapper of one with trained rows; None of any other."""
    return getattr(layer, "token_adapter", None)


def read_rows(layer: nn.Module) -> TokenRows | None:
    """Return the rows of an embedding or a head, or None where they are not all there is to it.

    Args:
        layer: An `nn.Embedding` or `nn.Linear`, or PEFT's wrapper of one with trained rows.
    """
    adapter, base = _find_token_adapter(layer), find_frozen_layer(layer)
    is_plain = isinstance(base, nn.Embedding | nn.Linear) and type(base.weight) is nn.Parameter
    if not is_plain or base.weight.requires_grad or getattr(base, "bias", None) is not None:
        return None
    if adapter is None or adapter.disable_adapters:
        return TokenRows(base.weight, (), base.weight[:0])
    (name,) = adapter.active_adapters
    token_ids, rows = adapter.token_indices[name], adapter.trainable_tokens_delta[name]
    order = sorted(range(len(token_ids)), key=lambda place: token_ids[place])
    if order != list(range(len(order))):
        rows = rows[order]
    return TokenRows(base.weight, tuple(sorted(token_ids)), rows)


def fuse_token_rows(model: "PeftModel") -> None:
    """Let a `peft.PeftModel` take its trained rows by `embed` and by `project`.

    Args:
        model: Its parameters and their names stay what they are.
    """
    ways = {embed: model.get_input_embeddings(), project: model.get_output_embeddings()}
    for forward, layer in ways.items():
        if _find_token_adapter(layer) is not None:
            layer.forward = MethodType(forward, layer)


def embed(layer: nn.Module, input_ids: Tensor) -> Tensor:
    """Return what an embedding gives, `[batch, tokens, hidden]`, its trained rows included.

    Args:
        layer: An `nn.Embedding`, or PEFT's wrapper of one.
        input_ids: int64 `[batch, tokens]`.
    """
    table = read_rows(layer)
    if table is None or not table.token_ids:
        embedded: Tensor = type(layer).forward(layer, input_ids)
        return embedded
    is_own = match_tokens(input_ids, table.token_ids)
    frozen = functional.embedding(input_ids, table.weight)
    own = is_own.to(frozen.dtype) @ table.rows.to(frozen.dtype)
    embedded = torch.where(is_own.any(-1, keepdim=True), own, frozen)
    scale = getattr(find_frozen_layer(layer), "embed_scale", None)  # Gemma's has one
    return embedded if scale is None else embedded * scale.to(embedded.dtype)


def project(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Return what a head gives, `[..., vocabulary]`, its trained rows included.

    Args:
        layer: An `nn.Linear`, or PEFT's wrapper of one.
        hidden: `[..., hidden]`, of the dtype of the head.
    """
    head = read_rows(layer)
    if head is None or not head.token_ids:
        projected: Tensor = type(layer).forward(layer, hidden)
        return projected
    logits = functional.linear(hidden, head.weight)
    own = functional.linear(hidden, head.rows.to(head.weight.dtype))
    return logits.index_copy(-1, head.token_ids_on(hidden.device), own)


def match_tokens(tokens: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """Return which of some tokens each is, without a wait for the device.

    Args:
        tokens: int64 of any shape.
        token_ids: The tokens.

    Returns:
        bool, of that shape and one dimension more, `[..., token_ids]`.
    """
    return tokens.unsqueeze(-1) == _on_device(token_ids, tokens.device)


@lru_cache(maxsize=16)
def _on_device(token_ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Return int64 `[token_ids]`."""
    return torch.tensor(token_ids, dtype=torch.int64, device=device)

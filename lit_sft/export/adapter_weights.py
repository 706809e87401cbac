"""The tensors of an adapter's checkpoint, sorted by the layers of the base that they change."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lit_sft.errors import InputError

TRAINED = re.compile(
    r"(?:_model\.)?base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])(\.\w+)?\.weight"
)
ROWS = re.compile(
    r"(?:_model\.)?base_model\.model\.(?P<layer>.+)\.token_adapter\.trainable_tokens_delta(\.\w+)?"
)


@dataclass(frozen=True)
class AdapterWeights:
    """The tensors of an adapter, by the layers that they change.

    Args:
        rank: Of the LoRA.
        alpha: The update is scaled by `alpha / rank`.
        pairs: A `[rank, in]` and B `[out, rank]`, float32, by the full name of the layer.
        token_ids: Whose rows are trained, in the order of `rows`.
        rows: `[token_ids, hidden]`, what stands for these rows, by the full name of the layer.
    """

    rank: int
    alpha: float
    pairs: dict[str, tuple[Tensor, Tensor]]
    token_ids: tuple[int, ...] = ()
    rows: dict[str, Tensor] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What `B @ A` is multiplied with."""
        return self.alpha / self.rank


def split_weights(
    state: Mapping[str, Tensor], rank: int, alpha: float, token_ids: tuple[int, ...], what: str
) -> AdapterWeights:
    """Sort the tensors of an adapter by the layers that they change.

    Args:
        state: A by `[r, in]`, B by `[out, r]`, and trained rows by `[token_ids, hidden]`.
        rank: `r`.
        alpha: The update is scaled by `alpha / rank`.
        token_ids: Whose rows are trained.
        what: The adapter, for messages.

    Raises:
        InputError: If one is neither LoRA's nor a token's row, such as of DoRA.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if found := TRAINED.fullmatch(name):
            parts.setdefault(found["layer"], {})[found["part"]] = tensor.float()
        elif found := ROWS.fullmatch(name):
            rows[found["layer"]] = tensor.float()
        else:
            raise InputError(
                f"export: {what!r} holds {name!r}, which is no part of plain LoRA (DoRA and "
                "modules_to_save are not exported here); merge it with PEFT's merge_and_unload"
            )
    pairs = {layer: (pair["A"], pair["B"]) for layer, pair in parts.items()}
    return AdapterWeights(rank, alpha, pairs, token_ids, rows)

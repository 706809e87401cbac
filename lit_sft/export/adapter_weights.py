"""The tensors of an adapter's checkpoint, sorted by the layers of the base that they change."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lit_sft.errors import InputError

TRAINED = re.compile(
    r"(?:_model\.)?base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])(\.\w+)?\.weight"
)
MAGNITUDES = re.compile(
    r"(?:_model\.)?base_model\.model\.(?P<layer>.+)\.lora_magnitude_vector(\.\w+)*"
)
SAVED = re.compile(
    r"(?:_model\.)?base_model\.model\.(?P<layer>.+)\.modules_to_save\.\w+\.(?P<own>\w+)"
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
        magnitudes: `[out]` of DoRA, float32, by the full name of the layer.
        whole: What stands in place of the base's own tensors, float32, by their names.
    """

    rank: int
    alpha: float
    pairs: dict[str, tuple[Tensor, Tensor]]
    token_ids: tuple[int, ...] = ()
    rows: dict[str, Tensor] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)

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
        InputError: If one is none of LoRA's, of DoRA's, of a token or of a whole layer.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, Tensor] = {}
    magnitudes: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if found := TRAINED.fullmatch(name):
            parts.setdefault(found["layer"], {})[found["part"]] = tensor.float()
        elif found := ROWS.fullmatch(name):
            rows[found["layer"]] = tensor.float()
        elif found := MAGNITUDES.fullmatch(name):
            magnitudes[found["layer"]] = tensor.float()
        elif found := SAVED.fullmatch(name):
            whole[f"{found['layer']}.{found['own']}"] = tensor.float()
        else:
            raise InputError(
                f"export: {what!r} holds {name!r}, which is no part of LoRA or DoRA; "
                "merge it with PEFT's merge_and_unload"
            )
    pairs = {layer: (pair["A"], pair["B"]) for layer, pair in parts.items()}
    return AdapterWeights(rank, alpha, pairs, token_ids, rows, magnitudes, whole)


def take_whole(state: Mapping[str, Tensor]) -> AdapterWeights:
    """Return the tensors of a checkpoint of a run that has no adapter and trained all weights."""
    whole = {name.removeprefix("_model."): tensor.float() for name, tensor in state.items()}
    return AdapterWeights(1, 1, {}, whole=whole)

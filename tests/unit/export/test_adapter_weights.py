"""A checkpoint's tensors by the layers that they change."""

import pytest
import torch

from lit_sft.errors import InputError
from lit_sft.export.adapter_weights import split_weights

PLACE = "_model.base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING = "_model.base_model.model.model.embed_tokens.token_adapter"


def test_pairs_and_rows_are_found_under_the_names_of_the_base():
    state = {
        f"{PLACE}.lora_A.default.weight": torch.ones(2, 6, dtype=torch.bfloat16),
        f"{PLACE}.lora_B.default.weight": torch.ones(4, 2),
        f"{EMBEDDING}.trainable_tokens_delta.default": torch.ones(3, 6),
    }
    weights = split_weights(state, 2, 8, (5, 6, 7), "x.ckpt")
    (a, b) = weights.pairs["model.layers.0.self_attn.q_proj"]
    assert (a.shape, b.shape, a.dtype) == ((2, 6), (4, 2), torch.float32)
    assert weights.rows["model.embed_tokens"].shape == (3, 6)
    assert weights.scale == 4


@pytest.mark.parametrize(
    "name",
    [
        f"{PLACE}.lora_magnitude_vector.default.weight",
        f"{PLACE}.modules_to_save.default.weight",
    ],
)
def test_more_than_lora_is_named(name):
    with pytest.raises(InputError, match=r"x.ckpt' holds .*, which is no part of plain LoRA"):
        split_weights({name: torch.ones(4)}, 2, 8, (), "x.ckpt")

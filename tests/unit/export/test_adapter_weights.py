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


@pytest.mark.parametrize("end", ["", ".default.weight"])
def test_magnitudes_are_found_in_a_checkpoint_and_in_a_folder(end):
    state = {f"{PLACE}.lora_magnitude_vector{end}": torch.ones(4)}
    weights = split_weights(state, 2, 8, (), "x.ckpt")
    assert weights.magnitudes["model.layers.0.self_attn.q_proj"].shape == (4,)


def test_a_whole_layer_is_found_under_the_name_of_the_base_s_tensor():
    name = "_model.base_model.model.lm_head.modules_to_save.default.weight"
    weights = split_weights({name: torch.ones(4, 2)}, 2, 8, (), "x.ckpt")
    assert weights.whole["lm_head.weight"].shape == (4, 2)


@pytest.mark.parametrize("name", [f"{PLACE}.lora_C.default.weight"])
def test_more_than_lora_is_named(name):
    with pytest.raises(InputError, match=r"x.ckpt' holds .*, which is no part of LoRA"):
        split_weights({name: torch.ones(4)}, 2, 8, (), "x.ckpt")

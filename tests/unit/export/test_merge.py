"""Merging a tensor at a time, and into how many files."""

import pytest
import torch

from lit_sft.errors import InputError
from lit_sft.export.adapter_weights import AdapterWeights
from lit_sft.export.base_files import open_base
from lit_sft.export.merge import merge_one, plan_shards, require_known_layers


def test_a_file_holds_what_fits_and_one_tensor_may_be_larger():
    sizes = {"a": 4, "b": 5, "c": 20, "d": 1, "e": 9}
    assert plan_shards(sizes, limit=10) == [["a", "b"], ["c"], ["d", "e"]]
    assert plan_shards({}, limit=10) == []


def test_an_update_and_rows_are_put_into_a_weight_and_nothing_else_is():
    torch.manual_seed(0)
    a, b, rows = torch.randn(2, 6), torch.randn(4, 2), torch.randn(1, 6)
    weights = AdapterWeights(2, 3.0, {"x.q": (a, b)}, (1,), {"x.q": rows, "embed": rows})
    weight = torch.randn(4, 6)
    expected = weight + 1.5 * b @ a
    expected[1] = rows[0]
    before = weight.clone()
    assert torch.allclose(merge_one("x.q", weight, weights), expected)
    assert torch.equal(merge_one("embed", weight, weights)[1], rows[0])
    assert torch.equal(weight, before), "what was read is not written to"
    assert merge_one("x.k", weight, weights) is weight


def test_a_layer_that_the_base_stores_otherwise_is_named(tiny_base):
    base, name = open_base(str(tiny_base)), "model.layers.0.self_attn.q_proj"
    require_known_layers(base, AdapterWeights(2, 4, {name: (torch.ones(2, 64), torch.ones(64, 2))}))
    for wrong in ({name: (torch.ones(2, 8), torch.ones(64, 2))}, {"x": (torch.ones(2, 64),) * 2}):
        with pytest.raises(InputError, match="no plain weight for 1 layers of the adapter"):
            require_known_layers(base, AdapterWeights(2, 4, wrong))

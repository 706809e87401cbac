"""The layers that get an adapter are those that were meant, and no others."""

import pytest
from architectures import build
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from lit_sft.errors import InputError
from lit_sft.model.target_layers import find_targets, list_adapted


def adapted(name, wanted):
    """Full names of the layers that PEFT adapts for what `find_targets` returns."""
    base = build(name, vocabulary=97)
    targets = find_targets(base, wanted)
    expected = list_adapted(base, targets)
    model = get_peft_model(base, LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
    found = {
        layer.removeprefix("base_model.model.")
        for layer, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert found == expected
    return {layer.rpartition(".")[2] for layer in found}, targets


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("Phi-3 and Phi-4", ["o_proj", "qkv_proj"]),
        ("GPT-2", ["attn.c_proj", "c_attn"]),  # mlp.c_proj has the same last name
        ("GPT-NeoX", ["dense", "query_key_value"]),
        ("Bloom", ["dense", "query_key_value"]),
        ("LFM2", ["k_proj", "q_proj", "self_attn.out_proj", "v_proj"]),  # conv.out_proj is another
        ("Falcon-H1", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("Nemotron-H", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("JetMoe", ["kv_proj"]),  # its q and o are experts, which are no linear layers
    ],
)
def test_attention_is_found_under_any_name(name, expected):
    assert adapted(name, "attention")[1] == expected


def test_all_linear_is_all_but_the_head():
    names, _ = adapted("Llama", "all-linear")
    assert names == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert adapted("GPT-2", "all-linear")[0] == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("name", ["Falcon-H1", "Nemotron-H", "Bamba"])
def test_all_linear_leaves_out_what_a_kernel_reads_itself(name):
    names, _ = adapted(name, "all-linear")
    assert "in_proj" in names
    assert "out_proj" not in names


def test_names_and_expressions_are_taken_as_they_are():
    assert adapted("Llama", ["q_proj", "down_proj"])[0] == {"q_proj", "down_proj"}
    names, targets = adapted("Llama", r"model\.layers\.1\..*\.(up|q)_proj")
    assert (names, targets) == ({"up_proj", "q_proj"}, r"model\.layers\.1\..*\.(up|q)_proj")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["q_proj", "q_prj"], r"no linear layer q_prj; it has .*q_proj"),
        (r".*\.q_prj", r"'\.\*\\\\\.q_prj' matches no linear layer; .*'model\.layers\.0"),
        ("all_linear", r"Did you mean 'all-linear'\?"),
        ("(", r"no regular expression"),
        (["lm_head"], r"no linear layer lm_head"),
    ],
)
def test_what_is_not_there_is_named(wanted, message):
    with pytest.raises(InputError, match=message):
        find_targets(build("Llama", vocabulary=97), wanted)


def test_a_model_without_linear_layers_is_refused():
    base = build("Llama", vocabulary=97)
    del base.model.layers[:]
    with pytest.raises(InputError, match=r"no layer for 'all-linear'; it has none"):
        find_targets(base, "all-linear")
    with pytest.raises(InputError, match=r"'\.\*proj' matches no linear layer"):
        find_targets(base, ".*proj")

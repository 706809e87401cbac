"""Adapted layers of one input: what is computed together, and what is not."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.fast.lora import fuse_lora
from lit_sft.model.fast.memory import count_bytes_per_token
from lit_sft.model.fast.siblings import computes_swiglu, fuse_siblings, part_unused

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build(kind=LlamaForCausalLM, config=None, together=True, targets="all-linear"):
    torch.manual_seed(0)
    base = kind(config or LlamaConfig(**SIZES)).requires_grad_(False)
    model = attach_lora(base, Lora(r=4, alpha=8, dropout=0.1, target_modules=targets))
    fuse_lora(model)
    if together:
        fuse_siblings(model)
    return model


def places_of_siblings(model):
    return {
        name.rpartition(".")[2]: len(module.siblings.layers)
        for name, module in model.named_modules()
        if hasattr(module, "siblings")
    }


def test_what_reads_one_input_is_found():
    joint = {"q_proj": 3, "k_proj": 3, "v_proj": 3, "gate_proj": 2, "up_proj": 2}
    assert places_of_siblings(build()) == joint
    assert places_of_siblings(build(targets=["q_proj", "v_proj"])) == {"q_proj": 2, "v_proj": 2}
    assert places_of_siblings(build(targets=["q_proj", "up_proj"])) == {}


def test_only_what_computes_swiglu_is_taken_for_it():
    class Scaled(LlamaMLP):
        def forward(self, x):
            return self.down_proj(self.up_proj(x) * self.act_fn(self.gate_proj(x) * 0.5))

    class Strange(LlamaMLP):
        def forward(self, x):
            raise KeyError("it needs more than this")

    config = LlamaConfig(**SIZES)
    assert computes_swiglu(LlamaMLP(config))
    assert not computes_swiglu(Scaled(config))
    assert not computes_swiglu(Strange(config))
    gelu = build(GemmaForCausalLM, GemmaConfig(**SIZES, head_dim=8))
    assert not any("forward" in vars(m) for m in gelu.modules() if type(m).__name__ == "GemmaMLP")
    assert places_of_siblings(gelu)["up_proj"] == 2


def test_a_layer_with_an_input_of_its_own_computes_for_itself():
    """As in cross-attention: what was made for it is thrown away, and not made again."""
    model = build()
    attention = model.get_decoder().layers[0].self_attn
    one, other = torch.randn(2, 1, 5, 32)
    torch.manual_seed(1)
    alone = [attention.q_proj.base_layer(one), attention.k_proj.base_layer(other)]
    crossed = [attention.q_proj(one), attention.k_proj(other)]
    for ours, expected in zip(crossed, alone, strict=True):  # B is zero where an adapter starts
        assert_close(ours, expected)
    siblings = attention.q_proj.siblings
    assert siblings._waiting
    part_unused(model)
    assert not siblings.is_together
    assert not siblings._waiting
    assert_close(attention.q_proj(one), alone[0])
    assert not siblings._waiting
    assert model.get_decoder().layers[1].self_attn.q_proj.siblings.is_together


def test_nothing_waits_after_a_pass_and_without_gradients():
    model = build()
    ids = torch.arange(20)[None]
    model(input_ids=ids).logits.sum().backward()
    with torch.no_grad():
        model.get_decoder().layers[0].self_attn.q_proj(torch.randn(1, 5, 32))
    part_unused(model)
    assert all(m.siblings.is_together for m in model.modules() if hasattr(m, "siblings"))


def test_less_is_kept_for_the_backward_pass():
    """Two activations of the MLP, and two masks of q, k and v and one of gate, a byte a number."""
    joint, each = (count_bytes_per_token(build(together=x), torch.device("cpu")) for x in (1, 0))
    copies_of_a = 5 * 4 * 32 * 4 / 64  # of five layers, in one matrix; 64 tokens are counted
    assert each - joint >= 2 * 96 * 4 + 3 * 32 - copies_of_a


def test_adapters_that_are_off_are_off():
    model = build()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    ids = torch.arange(20)[None]
    with_adapter = model(input_ids=ids).logits
    with model.disable_adapter():
        without = model(input_ids=ids).logits
        expected = LlamaForCausalLM.forward(model.get_base_model(), input_ids=ids).logits
    assert_close(without, expected)
    assert not torch.allclose(with_adapter, without)


@pytest.mark.filterwarnings("ignore")
def test_a_compiler_sees_through():
    """In one graph, which changes no bit."""
    model = build()
    layer = model.get_decoder().layers[0]
    attention = layer.self_attn

    def run(x):
        q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
        return q, k, v, layer.mlp(x)

    x = torch.randn(1, 6, 32, requires_grad=True)
    outcomes = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(2)
        outputs = function(x)
        loss = sum(output.square().sum() for output in outputs)
        outcomes.append([*outputs, *torch.autograd.grad(loss, [x, *used(layer)])])
    assert_close(*outcomes, rtol=0, atol=1e-5)
    assert not attention.q_proj.siblings._waiting


def used(layer):
    named = layer.named_parameters()
    return [p for name, p in named if p.requires_grad and "o_proj" not in name]

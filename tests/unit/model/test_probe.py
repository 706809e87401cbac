"""The probe finds what would be trained wrongly, however little it shows, and lets the rest be."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PhimoeConfig, PhimoeForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lit_sft import Lora
from lit_sft.errors import InputError
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import require_fixed_positions
from lit_sft.model.fast.cross_entropy import LogitScale, choose_logit_scale
from lit_sft.model.probe import probe_model

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


class LeakyLayer(LlamaDecoderLayer):
    """Adds a trace of the token before, whatever row that is of, as a convolution does."""

    trace = 1e-4

    def forward(self, hidden_states, **kwargs):
        before = torch.nn.functional.pad(hidden_states, (0, 0, 1, 0))[:, :-1]
        return super().forward(hidden_states + self.trace * before, **kwargs)


class BackwardLayer(LlamaDecoderLayer):
    """Adds a trace of the token after, which padding replaces."""

    def forward(self, hidden_states, **kwargs):
        after = torch.nn.functional.pad(hidden_states, (0, 0, 0, 1))[:, 1:]
        return super().forward(hidden_states + 0.5 * after, **kwargs)


class UnknownLogits(LlamaForCausalLM):
    """Does to its logits what no config entry tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output


def build(kind=LlamaForCausalLM, layer=None, dtype=torch.float32, token_ids=()):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES)
    base = kind(config)
    if layer is not None:
        for own in base.model.layers:
            own.__class__ = layer
    return attach_lora(base.to(dtype).requires_grad_(False), Lora(r=4, alpha=8), token_ids)


def probe(model, packed=True, dtype=torch.float32):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return probe_model(model, packed, fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("token_ids", [(), (3, 40)])
@pytest.mark.parametrize("packed", [True, False])
def test_a_llama_is_as_it_should_be(packed, token_ids, dtype):
    found = probe(build(dtype=dtype, token_ids=token_ids), packed, dtype)
    assert found.packs == packed
    assert found.logit_scale == LogitScale()
    assert found.remark == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_trace_of_another_row_is_found_in_any_dtype(dtype):
    """A loss cannot show it: in bfloat16 it is off by more than that from run to run."""
    found = probe(build(layer=LeakyLayer, dtype=dtype), dtype=dtype)
    assert not found.packs
    assert "packed rows see each other (loss " in found.remark
    assert "rows are padded instead" in found.remark


def test_rows_that_padding_changes_are_refused_with_both_losses():
    with pytest.raises(InputError, match=r"loss \d+\.\d+ padded, its own is \d+\.\d+") as caught:
        probe(build(layer=BackwardLayer))
    assert "packed" in str(caught.value)


def test_logits_that_nobody_knows_are_refused():
    with pytest.raises(InputError, match="UnknownLogits is not trained on its own loss"):
        probe(build(UnknownLogits))


def test_nothing_is_left_behind():
    model = build()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probe(model)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_cannot_run_is_an_error_of_one_line():
    model = build()
    model.get_base_model().model.norm.weight.data = torch.ones(5)
    with pytest.raises(InputError, match="cannot be run on a row of text") as caught:
        probe(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "factor"),
    [("logits_scaling", 1 / 8), ("logits_scaling", 8.0), ("logit_scale", 0.25)],
)
def test_what_a_config_entry_means_is_measured(entry, factor):
    """Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it."""
    config = LlamaConfig(**{entry: 0.25 if entry == "logit_scale" else 8.0})
    plain = torch.randn(5, 30)
    assert choose_logit_scale(plain, plain * factor, config) == LogitScale(factor)


def test_a_cap_in_the_config_that_the_model_does_not_use_is_none():
    config = LlamaConfig(final_logit_softcapping=2.0)
    plain = torch.randn(5, 30)
    assert choose_logit_scale(plain, plain, config) == LogitScale()
    capped = 2.0 * (plain / 2.0).tanh()
    assert choose_logit_scale(plain, capped, config) == LogitScale(softcap=2.0)


def build_phimoe():
    """Its window is in its mask alone, and packed attention is given no mask."""
    torch.manual_seed(0)
    config = PhimoeConfig(
        **SIZES,
        num_local_experts=2,
        sliding_window=32,
    )
    base = PhimoeForCausalLM(config).requires_grad_(False)
    return attach_lora(base, Lora(r=4, alpha=8, target_modules=("q_proj", "v_proj")))


def test_a_window_that_packed_attention_does_not_see_is_found_where_rows_leave_it():
    model = build_phimoe()
    found = probe_model(model, packed=True, fused=True, max_length=512)
    assert not found.packs
    assert "rows are padded instead" in found.remark
    assert probe_model(model, packed=True, fused=True, max_length=32).packs


ROPES = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_positions_that_hang_on_the_longest_row_are_refused_where_rows_mix(kind):
    config = LlamaConfig(max_position_embeddings=64, rope_parameters=ROPES[kind])
    require_fixed_positions(config, 64, runs_alone=False)
    require_fixed_positions(config, 65, runs_alone=True)
    with pytest.raises(InputError, match=rf"\({kind}\) changes .* over 64 tokens; .* got 65"):
        require_fixed_positions(config, 65, runs_alone=False)
    plain = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    require_fixed_positions(LlamaConfig(rope_parameters=plain), 65, runs_alone=False)

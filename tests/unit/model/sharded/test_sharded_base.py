"""The shares of all ranks, put together, are the base as transformers and bitsandbytes load it."""

import pytest
import torch
from architectures import build
from ranks import Ranks
from transformers import AutoConfig, AutoModelForCausalLM

from lit_sft import Quantization
from lit_sft.errors import InputError
from lit_sft.model.base_model import fingerprint_base, load_base
from lit_sft.model.fast.memory import cache_weights
from lit_sft.model.sharded.sharded_base import load_sharded_base

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 33, 4, 8, 1]])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    group = Ranks(2, tmp_path_factory.mktemp("ranks"))
    yield group
    group.close()


@pytest.fixture
def one_thread():
    """As the ranks have: some processors sum otherwise with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def describe(model, cached):
    """All that a base computes with, by name, whole; and what it gives."""
    found = {}
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found[name] = whole.detach().clone()
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits
    local = sum(p.to_local().numel() for p in model.parameters() if hasattr(p, "to_local"))
    return found, logits, fingerprint_base(model), cached, local


def load(base, quantization, dtype):
    return describe(*load_sharded_base(base, quantization, dtype, CPU))


@pytest.mark.parametrize(
    ("name", "quantization", "dtype"),
    [
        ("Llama", Quantization(weight_cache="none"), torch.bfloat16),
        ("Llama with biases", Quantization(double_quant=False), torch.float32),
        ("Qwen 2", Quantization("fp4"), torch.float32),
        ("Gemma 2", Quantization(weight_cache="bf16"), torch.bfloat16),
        ("Phi-3 and Phi-4", Quantization("none"), torch.bfloat16),
        ("LFM2", Quantization(), torch.float32),
    ],
)
def test_it_is_the_base(ranks, one_thread, tmp_path, name, quantization, dtype):
    build(name, vocabulary=97).save_pretrained(tmp_path)
    wanted = load_base(str(tmp_path), quantization, dtype, CPU)
    cached = quantization.weight_cache == "bf16" and cache_weights(wanted, "bf16", dtype, CPU)
    tensors, logits, fingerprint, _, _ = describe(wanted, cached)
    for found in ranks.run(load, [(str(tmp_path), quantization, dtype)] * 2):
        for place, tensor in tensors.items():
            held = found[0][place].flatten()  # codes may be held as numbers of two bytes
            assert torch.equal(held.view(tensor.dtype)[: tensor.numel()], tensor.flatten()), place
        assert torch.equal(found[1], logits)
        assert found[2] == fingerprint
        assert found[3] == -(-cached // 2)
        layers = sum(x.numel() for k, x in found[0].items() if "layers." in k and x.ndim > 1)
        assert found[4] == pytest.approx(layers / 2, rel=0.01)


def save_mixture(model_type, folder, **sizes):
    """A base of experts as its makers publish it, a matrix each, which transformers fuses."""
    config = AutoConfig.for_model(
        model_type,
        **{"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": None},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96} | sizes,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def refuse(base, quantization):
    try:
        load_sharded_base(base, quantization, torch.float32, CPU)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Jamba", "stores no tensor 'model.layers.1.feed_forward.experts.gate_up_proj' under that"),
        ("GPT-2", "has layers of its own kind (Conv1D); use ddp"),
    ],
)
def test_what_it_cannot_load_is_told_in_a_line(ranks, tmp_path, name, says):
    build(name, vocabulary=97).save_pretrained(tmp_path)
    for told in ranks.run(refuse, [(str(tmp_path), Quantization())] * 2):
        assert says in told
        assert "use ddp" in told
        assert "\n" not in told


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 48, "num_experts_per_tok": 2}),
    ],
)
def test_experts_that_transformers_fuses_are_told_in_a_line(ranks, tmp_path, model_type, sizes):
    save_mixture(model_type, tmp_path, **sizes)
    for told in ranks.run(refuse, [(str(tmp_path), Quantization())] * 2):
        assert "stores no tensor 'model.layers.0.mlp." in told
        assert told.endswith("use ddp, which loads it whole on each device")
        assert "\n" not in told

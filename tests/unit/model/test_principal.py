"""A principal start: PEFT's decomposition and conversion, on a base that stays as it is."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_sft import Lora, Quantization
from lit_sft.errors import InputError
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import load_base
from lit_sft.model.fast.kernels import make_fast
from lit_sft.model.principal import join_starts, read_starts, start_from_principal

LORA = Lora(r=4, alpha=8, dropout=0.0, init_weights="pissa")
TOKENS = torch.arange(3, 40)[None]


def make(base, quantization="none", lora=LORA):
    loaded = load_base(str(base), Quantization(quantization), torch.float32, torch.device("cpu"))
    untouched = logits_of(loaded)
    model = attach_lora(loaded, lora)
    start_from_principal(model, lora)
    make_fast(model)
    return model, untouched


def disturb(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def trained_of(model):
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_8"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_nothing_is_changed_at_the_start_and_peft_merges_what_is_trained(
    tiny_base, quantization, start
):
    lora = Lora(r=4, alpha=8, dropout=0.0, init_weights=start)
    model, untouched = make(tiny_base, quantization, lora)
    assert torch.allclose(logits_of(model), untouched, atol=1e-5)
    assert min(start.norm() for start in read_starts(model).values()) > 0.1
    disturb(model)
    changed = logits_of(model)
    assert not torch.allclose(changed, untouched, atol=1e-2)
    if quantization == "none":
        merged = model.merge_and_unload()
        assert torch.allclose(logits_of(merged), changed, atol=1e-4)


def test_what_is_written_is_peft_s_own_conversion(tiny_base, tmp_path):
    ours, _ = make(tiny_base)
    disturb(ours)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        init_lora_weights="pissa", task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = get_peft_model(base, config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    for name, trained in trained_of(ours).items():
        theirs.get_parameter(name).data = trained.clone()
    theirs.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    expected = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    joined = join_starts(trained_of(ours), read_starts(ours))
    assert {name.replace(".default", "") for name in joined} == expected.keys()
    for name, tensor in joined.items():
        there = expected[name.replace(".default", "")]
        assert tensor.shape == there.shape
        assert torch.allclose(tensor, there, atol=1e-5), name
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), tmp_path / "plain"
    )
    assert torch.allclose(logits_of(loaded), logits_of(ours), atol=1e-4)


def test_a_rank_above_the_layer_is_refused(tiny_base):
    with pytest.raises(InputError, match=r"no less than the rank 40, and .*k_proj is Linear"):
        make(tiny_base, lora=Lora(r=40, alpha=8, init_weights="pissa"))

"""Embedding and head with trained rows give what PEFT's own layers give, gradients included."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft import Lora
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import Quantization, load_base
from lit_sft.model.fast.embedding import fuse_token_rows
from lit_sft.model.fast.kernels import make_fast


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def models(request):
    """A model that goes PEFT's way, and the same one that goes ours, both in float64."""
    return [build(tied=request.param, fused=fused) for fused in (False, True)]


def build(tied, fused):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    model = attach_lora(LlamaForCausalLM(config), Lora(r=2, alpha=4), [41, 3])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
    if fused:
        fuse_token_rows(model)
    return model.double().eval()


def test_logits_and_gradients_are_those_of_peft(models):
    ids = torch.tensor([[3, 7, 41, 41, 0]])
    outcomes = []
    for model in models:
        model.zero_grad()
        logits = model(input_ids=ids).logits
        (logits * torch.linspace(-1, 1, 50, dtype=torch.float64)).sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        outcomes.append((logits, gradients))
    (plain, expected), (fused, found) = outcomes
    torch.testing.assert_close(fused, plain)
    size = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-12 * size, name


def test_without_its_adapter_it_is_the_base(models):
    ids = torch.tensor([[3, 7, 41]])
    plain, fused = models
    with torch.no_grad(), plain.disable_adapter(), fused.disable_adapter():
        torch.testing.assert_close(fused(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_no_copy_of_the_matrix_is_made(models):
    """PEFT's head copies all rows in every forward, and keeps a gradient of that size."""
    fused = models[1]
    weight = fused.get_base_model().lm_head.token_adapter.base_layer.weight
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        fused(input_ids=torch.tensor([[3, 7]]))
    copies = [x for x in kept if x.shape == weight.shape and x.data_ptr() != weight.data_ptr()]
    assert not copies


@pytest.mark.parametrize("token_ids", [[], [3, 4]])
def test_a_head_is_not_copied_for_each_row(tiny_base, token_ids):
    """The last states of rows lie apart, and torch would copy the head for each on a CPU."""
    base = load_base(str(tiny_base), Quantization(), torch.bfloat16, torch.device("cpu"))
    model = attach_lora(base, Lora(), token_ids).eval()
    make_fast(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        hidden = torch.randn(3, 5, model.config.hidden_size, dtype=torch.bfloat16)[:, -1:]
        logits = model.get_output_embeddings()(hidden)
    assert logits.shape == (3, 1, model.config.vocab_size)
    assert torch.ops.aten.bmm not in counted.get_flop_counts()["Global"]

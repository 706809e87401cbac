"""Deterministic kernels where a model has them, a word where not, and no trace of the try."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft import Lora
from lit_sft.cli.failures import explain
from lit_sft.data.batching import pad_batch
from lit_sft.model.adapter import attach_lora
from lit_sft.model.fast.kernels import is_deterministic, settle
from lit_sft.model.fast.memory import exchange_call, find_layers
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.types import Example


@pytest.fixture(autouse=True)
def _only_here():
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def model():
    config = LlamaConfig(
        vocab_size=70,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return attach_lora(LlamaForCausalLM(config).requires_grad_(False), Lora(r=2), [1])


def put(module, args, output):
    """An operation that has no deterministic form on any device."""
    place = torch.zeros(1, dtype=torch.int64)
    torch.zeros(3).put_(place, torch.ones(1))
    return output


@pytest.mark.parametrize("packed", [True, False])
def test_a_model_that_has_them_keeps_them_and_its_state(model, packed):
    weights = [p for p in model.parameters() if p.requires_grad]
    weights[0].grad = torch.ones_like(weights[0])
    state = torch.get_rng_state()
    settle(model, torch.device("cpu"), packed)
    assert is_deterministic()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0].grad, torch.ones_like(weights[0]))
    assert all(weight.grad is None for weight in weights[1:])


def test_a_model_that_lacks_one_goes_on_and_says_which(model, caplog):
    caplog.set_level("INFO", "lightning.pytorch")
    model.get_base_model().model.norm.register_forward_hook(put)
    settle(model, torch.device("cpu"), packed=True)
    assert not is_deterministic()
    assert torch.are_deterministic_algorithms_enabled(), "the others stay as they are"
    assert "put_ has no deterministic form on cpu" in caplog.text
    assert all(p.grad is None for p in model.parameters())


def test_other_errors_are_no_reason_to_go_on(model):
    def fail(module, args, output):
        raise RuntimeError("another reason")

    model.get_base_model().model.norm.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="another reason"):
        settle(model, torch.device("cpu"), packed=True)


def test_a_model_of_few_positions_is_tried_with_those(model):
    model.config.max_position_embeddings = 40
    seen = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, ids, output: seen.append(ids[0].shape))
    settle(model, torch.device("cpu"), packed=True)
    assert seen == [(1, 40)]


@pytest.mark.parametrize("width", [64, 128])
def test_what_is_compiled_in_the_try_is_enough_for_other_lengths(width):
    """Two sides that are equal, such as of tokens and of a head, would be taken for one."""
    config = LlamaConfig(
        vocab_size=70, hidden_size=width, intermediate_size=width, head_dim=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model = attach_lora(LlamaForCausalLM(config).requires_grad_(False), Lora(r=2), [1]).train()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    model.enable_input_require_grads()
    for layer in find_layers(model):
        exchange_call(layer, torch.compile(exchange_call(layer), dynamic=True, backend=backend))
    settle(model, torch.device("cpu"), packed=False)
    once = len(compiled)
    for length in (64, 40, 300):
        row = Example([1] * length, [1] * length)
        sum_supervised_loss(model, pad_batch([row], 0)).backward()
    assert len(compiled) == once > 0


def test_one_that_is_met_later_is_a_line_with_the_way_on():
    with pytest.raises(RuntimeError) as error:
        put(None, None, None)
    status, text = explain(error.value)
    assert status == 1
    assert text.startswith("error: put_ does not have a deterministic implementation; ")
    assert text.endswith("--trainer.deterministic false")
    assert "\n" not in text

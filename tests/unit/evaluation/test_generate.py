import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft.errors import InputError
from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.generate import generate_greedy

STOPS, PAD, MAX_NEW = [1], 0, 6
PROMPTS = [[7] * length for length in (3, 9, 1, 5, 9, 2, 4)]


@pytest.fixture
def llama() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            attention_dropout=0.5,
        )
        return LlamaForCausalLM(config).eval()


class Watched(nn.Module):
    """A model that notes the shape of every prompt batch, and lacks memory for large ones."""

    def __init__(self, model: LlamaForCausalLM, most_rows: int, error: Exception) -> None:
        super().__init__()
        self.model, self.most_rows, self.error = model, most_rows, error
        self.shapes: list[tuple[int, int]] = []
        self.eval()

    def forward(self, input_ids: torch.Tensor, **kwargs):
        if input_ids.shape[1] > 1 or not (kwargs.keys() & {"cache", "past_key_values"}):
            self.shapes.append(tuple(input_ids.shape))
        if len(input_ids) > self.most_rows:
            raise self.error
        return self.model(input_ids=input_ids, **kwargs)


def watch(model: LlamaForCausalLM, most_rows: int = 1000, error: Exception | None = None):
    return Watched(model, most_rows, error or torch.OutOfMemoryError("CUDA out of memory."))


class Counting(nn.Module):
    """A model of one rule: after token n comes n - 1, so that a prompt foretells its answer."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, input_ids: torch.Tensor, **kwargs):
        output = self.model(input_ids=input_ids, **kwargs)
        following = (input_ids[:, -1:] - 1).clamp(min=0)
        output.logits = nn.functional.one_hot(following, 50).float()
        return output


def test_answers_come_in_the_order_of_the_prompts(llama):
    prompts = [[9, 3], [9, 9, 9, 4], [2], [9, 8], [9, 9, 5]]
    answers = generate_greedy(Counting(llama), prompts, STOPS, PAD, 5, max_batch_tokens=20)
    assert [answer.token_ids for answer in answers] == [[2], [3, 2], [], [7, 6, 5, 4, 3], [4, 3, 2]]
    assert [answer.finished for answer in answers] == [True, True, True, False, True]


def test_a_stop_on_the_last_allowed_token_is_finished(llama):
    (answer,) = generate_greedy(Counting(llama), [[4]], STOPS, PAD, 3, max_batch_tokens=20)
    assert answer == ([3, 2], True)


def test_any_of_several_stop_tokens_stops_and_none_never_does(llama):
    model = Counting(llama)
    assert generate_greedy(model, [[9]], [1, 6], PAD, 8, 100)[0] == ([8, 7], True)
    assert generate_greedy(model, [[4]], [], PAD, 5, 100)[0] == ([3, 2, 1, 0, 0], False)


def test_no_prompts_are_no_work(llama):
    model = watch(llama)
    assert generate_greedy(model, [], STOPS, PAD, MAX_NEW, 100) == []
    assert model.shapes == []


@pytest.mark.parametrize("budget", [1, 15, 16, 30, 31, 45, 1000])
def test_batches_keep_to_the_token_budget(llama, budget):
    model = watch(llama)
    assert len(generate_greedy(model, PROMPTS, STOPS, PAD, MAX_NEW, budget)) == len(PROMPTS)
    assert sum(rows for rows, _ in model.shapes) == len(PROMPTS)
    for rows, longest in model.shapes:
        assert rows == 1 or rows * (longest + MAX_NEW) <= budget
    assert [longest for _, longest in model.shapes] == sorted(
        (longest for _, longest in model.shapes), reverse=True
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_warns_once(llama, error):
    expected = generate_greedy(llama, PROMPTS, STOPS, PAD, MAX_NEW, 10**6)
    model = watch(llama, most_rows=2, error=error)
    with pytest.warns(UserWarning, match=r"out of memory with 7 rows of 15 tokens") as caught:
        assert generate_greedy(model, PROMPTS, STOPS, PAD, MAX_NEW, 10**6) == expected
    assert len(caught) == 1
    assert [rows for rows, _ in model.shapes[:3]] == [7, 3, 1]


def test_out_of_memory_with_one_row_is_an_error(llama):
    model = watch(llama, most_rows=0)
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(torch.OutOfMemoryError),
    ):
        generate_greedy(model, PROMPTS, STOPS, PAD, MAX_NEW, 10**6)


def test_other_errors_are_not_taken_for_lack_of_memory(llama):
    model = watch(llama, most_rows=2, error=RuntimeError("mat1 and mat2 cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        generate_greedy(model, PROMPTS, STOPS, PAD, MAX_NEW, 10**6)
    assert len(model.shapes) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(llama, value):
    with torch.no_grad():
        llama.lm_head.weight[3] = value
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        generate_greedy(llama, PROMPTS, STOPS, PAD, MAX_NEW, 100)


def test_masked_vocabulary_is_not_an_error(llama):
    llama.lm_head.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.arange(40, 50), float("-inf"))
    )
    answers = generate_greedy(llama, PROMPTS, STOPS, PAD, MAX_NEW, 100)
    assert all(token < 40 for answer in answers for token in answer.token_ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be positive, got 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be positive, got -3"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be positive, got 0"),
        ({"prompts": [[3], [], [4], []]}, "prompts 1, 3 are empty"),
    ],
)
def test_bad_requests_are_input_errors(llama, changes, message):
    request = {
        "prompts": PROMPTS,
        "stop_ids": STOPS,
        "pad_id": PAD,
        "max_new_tokens": MAX_NEW,
        "max_batch_tokens": 100,
    }
    with pytest.raises(InputError, match=message):
        generate_greedy(llama, **(request | changes))


def test_a_model_in_training_mode_is_refused(llama):
    llama.model.layers[0].train()
    with pytest.raises(InputError, match="evaluating"):
        generate_greedy(llama, PROMPTS, STOPS, PAD, MAX_NEW, 100)


def draw_from_every_generator() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def test_generation_changes_no_config_mode_random_state_or_gradient(llama):
    llama.config.use_cache = False
    config, generation_config = llama.config.to_dict(), llama.generation_config.to_dict()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    answers = generate_greedy(llama, PROMPTS, STOPS, PAD, MAX_NEW, 100)
    assert answers
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1][1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert llama.config.to_dict() == config
    assert llama.generation_config.to_dict() == generation_config
    assert torch.is_grad_enabled()
    assert not llama.training


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_leaves_no_trace(llama, fails):
    llama.train()
    llama.model.layers[1].mlp.eval()  # a part that trains in eval mode, inside one that does not
    llama.model.layers[0].eval()
    llama.model.layers[0].self_attn.train()
    before = {name: module.training for name, module in llama.named_modules()}
    expected = draw_after_seeding(llama, inside=False, fails=False)
    assert draw_after_seeding(llama, inside=True, fails=fails) == expected
    assert {name: module.training for name, module in llama.named_modules()} == before
    assert set(before.values()) == {True, False}
    assert torch.is_grad_enabled()


def draw_after_seeding(model: nn.Module, inside: bool, fails: bool) -> tuple[float, float, float]:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    if inside:
        try:
            with evaluating(model):
                assert not any(module.training for module in model.modules())
                assert not torch.is_grad_enabled()
                draw_from_every_generator()
                if fails:
                    raise KeyError("something went wrong")
        except KeyError:
            pass
    return draw_from_every_generator()


def test_training_goes_on_as_if_nothing_had_been_generated(llama):
    twin = deepcopy(llama)
    losses = []
    for model, evaluate in ((llama, False), (twin, True)):
        torch.manual_seed(3)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            if evaluate:
                with evaluating(model):
                    generate_greedy(model, PROMPTS, STOPS, PAD, MAX_NEW, 100)
            ids = torch.randint(2, 50, (2, 12))
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[:3] == losses[3:]

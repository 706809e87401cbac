"""Each fast path against the plain way, on the device that it was made for."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sft import Lora
from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.generate import Generation, generate_greedy
from lit_sft.model.adapter import attach_lora
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.cross_entropy import differentiate_by_chunks, fused_cross_entropy
from lit_sft.model.fast.embedding import TokenRows
from lit_sft.model.fast.lora import fuse_lora
from lit_sft.model.fast.memory import free_memory_bytes, recompute_layers
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.types import IGNORE_INDEX, Example

VOCABULARY, TRAINED_TOKENS = 4096, [3, 40, 997]
LENGTHS = (97, 5, 256, 33, 180, 2, 64)
SINGLE, NEAR_IN_BF16 = 1e-5, 0.995


def build(device, tied=True, dtype=torch.float32, dropout=0.0, fused=True):
    """A small Llama with an adapter of which no part is zero; the same weights in every dtype."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    base = LlamaForCausalLM(config).to(device, dtype).requires_grad_(False)
    base.config.use_cache = False
    model = attach_lora(base, Lora(r=8, alpha=16, dropout=dropout), TRAINED_TOKENS)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data = noise.to(device)
    if fused:
        fuse_lora(model)
    return model


def make_rows() -> list[Example]:
    generator = torch.Generator().manual_seed(2)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        ids[-1] = TRAINED_TOKENS[1]
        rows.append(Example(ids, [IGNORE_INDEX] * (length // 3) + ids[length // 3 :]))
    return rows


def silence(rows: list[Example], heard: int) -> list[Example]:
    """The rows, of which one alone carries loss."""
    return [
        row if i == heard else Example(row.input_ids, [IGNORE_INDEX] * len(row.labels))
        for i, row in enumerate(rows)
    ]


def gradient_of(model) -> torch.Tensor:
    parts = [p.grad.flatten().float() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return torch.cat(parts)


def arithmetic(device, dtype):
    is_mixed = dtype == torch.bfloat16
    return torch.autocast(device.type, dtype) if is_mixed else nullcontext()


def run(model, batch, device, dtype=torch.float32, fused=True):
    """Loss and gradient of a batch."""
    placed = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    torch.manual_seed(3)  # what dropout draws
    with arithmetic(device, dtype):
        loss = sum_supervised_loss(model, placed, fused)
    loss.backward()
    return loss.detach().float().cpu(), gradient_of(model)


def run_plainly(model, row: Example, device, dtype=torch.float32):
    """The same for one row by nothing but transformers."""
    model.config._attn_implementation = "eager"
    ids = torch.tensor([row.input_ids], device=device)
    targets = torch.tensor(row.labels[1:], device=device)
    with arithmetic(device, dtype):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    loss = cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    loss.backward()
    return loss.detach().float().cpu(), gradient_of(model)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("tied", [True, False])
def test_every_row_packed_and_padded_is_the_row_alone(device, tied):
    model, plain, rows = build(device, tied), build(device, tied, fused=False), make_rows()
    for number, row in enumerate(rows):
        loss, gradient = run_plainly(plain, row, device)
        among_others = silence(rows, number)
        for batch in (pack_batch(among_others), pad_batch(among_others, 0), pack_batch([row])):
            got_loss, got = run(model, batch, device)
            torch.testing.assert_close(got_loss, loss, rtol=SINGLE, atol=SINGLE)
            assert error(got, gradient) < SINGLE, (number, "cu_seq_lens" in batch)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("packed", [True, False])
def test_bfloat16_points_where_fp32_points(device, packed):
    rows = make_rows()
    batch = pack_batch(rows) if packed else pad_batch(rows, 0)
    loss, gradient = run(build(device), batch, device)
    mixed = build(device, dtype=torch.bfloat16)
    got_loss, got = run(mixed, batch, device, torch.bfloat16)
    assert cosine_similarity(got, gradient, dim=0) > NEAR_IN_BF16
    torch.testing.assert_close(got_loss, loss, rtol=1e-2, atol=0)
    plain = build(device, dtype=torch.bfloat16, fused=False)
    alone = sum(run_plainly(plain, row, device, torch.bfloat16)[1] for row in rows)
    ours, theirs = (cosine_similarity(x, gradient, dim=0) for x in (got, alone))
    assert 1 - ours < 2 * (1 - theirs) + 1e-4, "as near to the truth as the plain way"


@pytest.mark.parametrize("size", [61, 7])
def test_the_chunked_head_is_autograds(device, dtype, size):
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, 192, device=device) / 14
    own = torch.randn(len(TRAINED_TOKENS), 192, device=device) / 14
    hidden = torch.randn(61, 192, device=device) * 2
    targets = torch.randint(VOCABULARY, (61,), device=device)
    targets[:3] = torch.tensor(TRAINED_TOKENS, device=device)
    weight, own, hidden = (x.to(dtype) for x in (weight, own, hidden))
    states, rows = (x.double().requires_grad_() for x in (hidden, own))
    whole = weight.double().index_copy(0, torch.tensor(TRAINED_TOKENS, device=device), rows)
    loss = cross_entropy(states @ whole.T, targets, reduction="sum")
    loss.backward()
    got = differentiate_by_chunks(
        hidden, targets, TokenRows(weight, tuple(TRAINED_TOKENS), own), size
    )
    bound = SINGLE if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.loss.double(), loss.detach(), rtol=bound, atol=0)
    assert error(got.of_hidden.double(), states.grad) < bound
    assert error(got.of_rows.double(), rows.grad) < bound


def test_the_fused_head_is_autograds(device):
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, 192, device=device) / 14
    hidden = torch.randn(61, 192, device=device, requires_grad=True)
    targets = torch.randint(VOCABULARY, (61,), device=device)
    head = TokenRows(weight, (), weight[:0])
    gradients = []
    for loss in (
        fused_cross_entropy(hidden, targets, head),
        cross_entropy(hidden @ weight.T, targets, reduction="sum"),
    ):
        (gradient,) = torch.autograd.grad(loss * 0.5, hidden)
        gradients.append((loss.detach(), gradient))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=SINGLE, atol=0)
    assert error(gradients[0][1], gradients[1][1]) < SINGLE


def test_the_chunked_head_does_not_wait_for_the_card(device):
    """Else the kernels behind it are launched one by one while the card has nothing to do."""
    if device.type != "cuda":
        pytest.skip("a CPU has nothing to wait for")
    weight, hidden = (torch.randn(n, 192, device=device) for n in (VOCABULARY, 61))
    targets = torch.randint(VOCABULARY, (61,), device=device)
    head = TokenRows(weight, tuple(TRAINED_TOKENS), weight[: len(TRAINED_TOKENS)].clone())
    differentiate_by_chunks(hidden, targets, head, 32)  # brings the ids to the card, once
    torch.cuda.set_sync_debug_mode("error")
    try:
        differentiate_by_chunks(hidden, targets, head, 32)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_fused_lora_is_pefts(device, dtype):
    batch = pack_batch(make_rows())
    loss, gradient = run(build(device, dtype=dtype, fused=False), batch, device, dtype)
    got_loss, got = run(build(device, dtype=dtype), batch, device, dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(got_loss, loss, rtol=SINGLE, atol=0)
        assert error(got, gradient) < SINGLE
    else:
        torch.testing.assert_close(got_loss, loss, rtol=1e-2, atol=0)
        assert cosine_similarity(got, gradient, dim=0) > NEAR_IN_BF16


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("count", [1, 4])
def test_recomputing_changes_no_bit_and_dropout_draws_the_same(device, dtype, count):
    outcomes = []
    for recomputed in (0, count):
        model = build(device, dtype=dtype, dropout=0.1)
        if recomputed:
            recompute_layers(model, recomputed)
        outcomes.append(run(model, pack_batch(make_rows()), device, dtype))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert torch.equal(outcomes[0][1], outcomes[1][1])


@pytest.mark.usefixtures("deterministic")
def test_answers_are_those_of_generate(device):
    model = build(device)
    use_attention(model, packed=False)
    prompts = [row.input_ids for row in make_rows()]
    limit = 24
    with evaluating(model):
        unstopped = generate_greedy(model, prompts, [], 0, limit, max_batch_tokens=1200)
        stop_ids = sorted({unstopped[row].token_ids[3 + 5 * row] for row in range(3)})
        answers = generate_greedy(model, prompts, stop_ids, 0, limit, max_batch_tokens=1200)
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt], device=device)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=limit,
                eos_token_id=stop_ids,
                pad_token_id=0,
                use_cache=True,
            )
            said = output[0, len(prompt) :].tolist()
            finished = said[-1] in stop_ids
            assert answer == Generation(said[:-1] if finished else said, finished)
    assert sum(answer.finished for answer in answers) >= 3


def test_no_more_memory_is_free_than_a_process_may_have(device):
    if device.type != "cuda":
        pytest.skip("a CPU has no such limit")
    card = torch.device("cuda", torch.cuda.current_device())
    total = torch.cuda.get_device_properties(card).total_memory
    before = free_memory_bytes(card)
    allowed = (torch.cuda.memory_allocated(card) + 2**30) / total
    torch.cuda.set_per_process_memory_fraction(allowed, card)
    try:
        free = free_memory_bytes(card)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card)
    assert free == pytest.approx(2**30, rel=1e-6)
    assert free < before

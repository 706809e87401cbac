"""A base in shares gives the numbers of a whole one, whatever rows each rank has."""

from functools import cache, partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import Ranks
from torch import nn

from lit_sft import Lora, Quantization
from lit_sft.data.batching import pack_batch, pad_batch, share_out
from lit_sft.errors import InputError
from lit_sft.evaluation.generate import generate_greedy
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import fingerprint_base, load_base
from lit_sft.model.distributed import sum_gradients, take_from_first
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.kernels import compile_layers, make_fast, run_uncompiled, settle
from lit_sft.model.fast.layer_graphs import LayerGraphs
from lit_sft.model.fast.memory import (
    count_bytes_per_token,
    exchange_call,
    find_layers,
    recompute_layers,
)
from lit_sft.model.loss import decode, sum_supervised_loss
from lit_sft.model.probe import probe_model
from lit_sft.model.sharded.in_step import fill_up, is_sharded, keep_in_step
from lit_sft.model.sharded.sharded_base import load_sharded_base
from lit_sft.types import Example

CPU = torch.device("cpu")
LONGEST = 40
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
COUNTS = st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any)
"""Rows of each rank in a window."""
LENGTHS = st.lists(st.integers(3, LONGEST), min_size=8, max_size=8)
FIFTEEN = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Way(NamedTuple):
    """How a model is held."""

    base: str
    shards: bool
    cached: bool = False
    recomputed: int = 0
    kept: tuple[int, ...] | None = None
    """Layers that keep what they need, where all are run as they are captured on CUDA."""


@cache
def build(way: Way):
    """An adapted model in training mode, its halves B not zero."""
    quantization = Quantization(weight_cache="auto" if way.cached else "none")
    if way.shards:
        base = load_sharded_base(way.base, quantization, torch.float32, CPU).model
    else:
        base = load_base(way.base, quantization, torch.float32, CPU)
    torch.manual_seed(0)
    model = attach_lora(base, LORA, [3, 5])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    make_fast(model)
    if way.recomputed:
        recompute_layers(model, way.recomputed)
    return model


@cache
def build_graphs(way: Way):
    model = build(way)
    return LayerGraphs(partial(decode, model), find_layers(model), LONGEST, way.kept)


def draw_row(number: int, length: int) -> Example:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(8, 250, (length,), generator=generator).tolist()
    return Example(ids, [-100] * (length // 3) + ids[length // 3 :])


def differentiate(way: Way, rows, per_pass: int, packed: bool, supervised: int):
    """The gradient of a window over all ranks, of which this one has some rows."""
    model = build(way)
    passes = [[rows[i] for i in x] for x in share_out([len(x.input_ids) for x in rows], per_pass)]
    window = [pack_batch(x) if packed else pad_batch(x, 0) for x in passes if x]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    for batch in fill_up(model, window, CPU):
        hidden = None if way.kept is None else build_graphs(way)(batch)
        (sum_supervised_loss(model, batch, hidden=hidden) / supervised).backward()
    assert way.kept is None or build_graphs(way).is_capturing
    sum_gradients(trained)
    return torch.cat([parameter.grad.flatten() for parameter in trained])


def see_inputs(way: Way):
    """Whether layers get views, in the pass that is tried first and in one that is captured."""
    seen: list[bool] = []
    norm = find_layers(build(way))[1].input_layernorm
    hook = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]._is_view()))
    settle(build(way), CPU, packed=True)
    tried = {*seen}
    seen.clear()
    build_graphs(way)(pack_batch([draw_row(0, 9)]))
    hook.remove()
    return tried, {*seen}


def see_blocks(way: Way):
    """What a compiler takes the block of each 4-bit weight of a layer to be."""
    model, found = build(way), []

    def record(graph, inputs):
        nodes = [node for node in graph.graph.nodes if "multiply_packed" in str(node.target)]
        found.extend(str(node.args[7]) for node in nodes)
        return graph

    layers = find_layers(model)
    run = exchange_call(layers[1])
    compile_layers(model)
    run_uncompiled(model)
    exchange_call(layers[1], torch.compile(run, dynamic=True, backend=record))
    settle(model, CPU, packed=True)
    exchange_call(layers[1], run)
    model.disable_input_require_grads()
    return found


def try_what_differs_each_time(way: Way) -> str:
    def put(module, given):
        torch.zeros(3).put_(torch.zeros(1, dtype=torch.int64), torch.ones(1))

    build(way).get_decoder().norm.register_forward_pre_hook(put)
    torch.use_deterministic_algorithms(True)
    try:
        settle(build(way), CPU, packed=True)
    except InputError as error:
        return str(error)
    finally:
        torch.use_deterministic_algorithms(False)
    return ""


def answer(way: Way, prompts):
    model = build(way).eval()
    use_attention(model, packed=False)
    try:
        with keep_in_step(model):
            return [
                generate_greedy(model, [prompt], [7], 0, limit, 500)[0].token_ids
                for prompt, limit in prompts
            ]
    finally:
        model.train()


def look(way: Way):
    """What is asked of a model before it is trained."""
    model = build(way)
    kept = count_bytes_per_token(model, CPU)
    weights = [p for p in model.parameters() if not p.requires_grad]
    local = sum(p.to_local().numel() * p.element_size() for p in weights if hasattr(p, "to_local"))
    return (
        is_sharded(model),
        fingerprint_base(model.get_base_model()),
        probe_model(model, packed=True),
        kept,
        local,
    )


def copy_as_cuda_does():
    """Let what FSDP gathers by be as on CUDA, where any NaN of bfloat16 comes back as one."""
    copy = torch._foreach_copy_

    def copy_by_float32(into, given, *more):
        copy(into, given, *more)
        for copied in into:
            if copied.dtype == torch.bfloat16:
                copied.view(torch.int16)[copied.isnan()] = 0x7FFF

    torch._foreach_copy_ = copy_by_float32


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    group = Ranks(2, tmp_path_factory.mktemp("ranks"))
    group.run(copy_as_cuda_does, [(), ()])
    yield group
    group.close()


@pytest.fixture(scope="module")
def base(tiny_base):
    return str(tiny_base)


def compare(ranks, base, counts, lengths, per_pass, packed, **way):
    """The gradient of one process, of two with the base each, and of two that share it."""
    rows = [draw_row(i, length) for i, length in enumerate(lengths)]
    supervised = sum(int(label != -100) for row in rows for label in row.labels[1:])
    shares = [rows[: counts[0]], rows[counts[0] : sum(counts)]]
    everything = shares[0] + shares[1]
    alone = differentiate(Way(base, False), everything, per_pass, packed, supervised)
    got = {
        shards: ranks.run(
            differentiate,
            [(Way(base, shards, **way), share, per_pass, packed, supervised) for share in shares],
        )
        for shards in (False, True)
    }
    for ddp, sharded in zip(*got.values(), strict=True):
        assert torch.equal(ddp, sharded)
        assert (sharded - alone).norm() <= 1e-6 * alone.norm()
    assert alone.norm() > 0


def draw_and_take(rank):
    numbers = [torch.full((2, 3), float(rank)), torch.arange(3.0) + rank]
    take_from_first(numbers)
    return numbers


def test_all_ranks_begin_with_the_numbers_of_the_first(ranks):
    first, second = ranks.run(draw_and_take, [(0,), (1,)])
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours, theirs)
    assert first[1].tolist() == [0, 1, 2]


@given(
    counts=COUNTS,
    lengths=LENGTHS,
    per_pass=st.integers(20, 200),
    packed=st.booleans(),
)
@FIFTEEN
def test_a_gradient_is_that_of_one_process_for_any_window(
    ranks, base, counts, lengths, per_pass, packed
):
    """Ranks have different numbers of passes, and some have no row."""
    compare(ranks, base, counts, lengths[: sum(counts)], per_pass, packed)


@pytest.mark.parametrize("counts", [(3, 1), (2, 0)])
def test_recomputed_layers_are_gathered_again(ranks, base, counts):
    compare(ranks, base, counts, [30, 20, 10, 25][: sum(counts)], 35, True, recomputed=2)


@given(
    counts=COUNTS,
    lengths=LENGTHS,
    per_pass=st.integers(LONGEST, 200),
    kept=st.sampled_from([(), (0,), (1,), (0, 1)]),
    cached=st.booleans(),
)
@FIFTEEN
def test_layers_that_read_what_is_gathered_from_fixed_memory(
    ranks, base, counts, lengths, per_pass, kept, cached
):
    rows = lengths[: sum(counts)]
    compare(ranks, base, counts, rows, per_pass, packed=True, kept=kept, cached=cached)


def test_an_operation_that_differs_each_time_is_named(ranks, base):
    """One device goes on without determinism; these cannot leave the pass that found it."""
    way = Way(base, True, cached=True, recomputed=2)
    for told in ranks.run(try_what_differs_each_time, [(way,)] * 2):
        assert told.startswith("trainer.deterministic: put_ has no deterministic form on cpu")
        assert told.endswith("set it to false")


def test_captured_layers_are_run_on_what_they_were_compiled_for(ranks, base):
    """For a view, a compiled layer is another than for what is none."""
    for tried, captured in ranks.run(see_inputs, [(Way(base, True, kept=(0,)),)] * 2):
        assert captured == tried


def test_a_compiler_knows_the_numbers_of_a_layer(ranks, base):
    """Of FSDP's it takes them for variables, and computes every place in memory by them."""
    for found in ranks.run(see_blocks, [(Way(base, True),)] * 2):
        assert found == ["64"] * 7


def test_answers_are_those_of_one_process_with_different_numbers_of_them(ranks, base):
    prompts = [([9, 33, 41], 6), ([12, 13], 3), ([100, 101, 102, 104], 9)]
    alone = answer(Way(base, False), prompts)
    for cut in (0, 1, 3):
        parts = [prompts[:cut], prompts[cut:]]
        got = ranks.run(answer, [(Way(base, True), part) for part in parts])
        assert got[0] + got[1] == alone


def test_what_is_asked_before_training_has_the_same_answers(ranks, base):
    plain = look(Way(base, False))
    sharded = ranks.run(look, [(Way(base, True),)] * 2)
    assert plain[0] is False
    for found in sharded:
        assert found[0] is True
        assert found[1:3] == plain[1:3]
        assert found[3] == pytest.approx(plain[3], rel=0.02)
    assert sharded[0][4] == pytest.approx(sharded[1][4], rel=0.02)

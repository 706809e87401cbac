"""Layers computed again one by one, on a CPU: the work of the graphs, done as it is."""

import warnings
from collections import UserDict
from functools import partial

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM

from lit_sft import Lora
from lit_sft.data.batching import pack_batch
from lit_sft.model.adapter import attach_lora
from lit_sft.model.fast.fixed_layer import FixedLayer
from lit_sft.model.fast.flat_parameters import FlatParameters
from lit_sft.model.fast.graphs import choose_size, fit
from lit_sft.model.fast.kernels import make_fast
from lit_sft.model.fast.layer_graphs import LayerGraphs
from lit_sft.model.fast.memory import exchange_call, find_layers, recompute_layers
from lit_sft.model.loss import decode, sum_supervised_loss
from lit_sft.model.sharded.in_step import make_empty_pass
from lit_sft.types import Example

LONGEST = 16


class Setup:
    """A tiny model with an adapter and a trained row, every layer of which is computed again."""

    def __init__(self, base) -> None:
        model = AutoModelForCausalLM.from_pretrained(base)
        model.requires_grad_(False)
        torch.manual_seed(0)
        self.model = attach_lora(model, Lora(r=4, alpha=8, dropout=0.3), [5]).train()
        make_fast(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in trained:
            torch.nn.init.normal_(parameter, std=0.05)
        self.flat = FlatParameters(trained)
        self.layers = find_layers(self.model)
        recompute_layers(self.model, len(self.layers))
        self.run = partial(decode, self.model)

    def run_padded(self, batch) -> torch.Tensor:
        padded = fit(batch, choose_size(batch, LONGEST), LONGEST)
        return self.run(padded)[:, : batch["input_ids"].shape[1]]

    def step(self, run, batches) -> tuple[list[float], torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        self.flat.zero_grad()
        losses = []
        for batch in batches:
            loss = sum_supervised_loss(self.model, batch, hidden=run(batch))
            loss.backward()
            losses.append(loss.item())
        return losses, self.flat.gradient.clone(), torch.rand(3)

    def compile(self, backend) -> None:
        for layer in self.layers:
            layer.gradient_checkpointing = False
            exchange_call(layer, torch.compile(exchange_call(layer), backend=backend, dynamic=True))

    def count_runs(self, run, batch) -> list[int]:
        """How often a step runs each layer: twice where it is computed again."""
        ran = []
        hooks = [x.register_forward_pre_hook(lambda x, _: ran.append(x)) for x in self.layers]
        self.step(run, [batch])
        for hook in hooks:
            hook.remove()
        return [ran.count(layer) for layer in self.layers]


def make(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randint(50, (n,), generator=generator).tolist() for n in lengths]
    return pack_batch([Example(ids, ids) for ids in rows])


@pytest.fixture
def setup(tiny_base):
    return Setup(tiny_base)


def fail_to_capture(layer, pool, dice):
    raise torch.OutOfMemoryError("there is none")


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(FixedLayer, "capture_forward", fail_to_capture)


@pytest.mark.parametrize("kept", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("lengths", [[(16, 16), (10, 6), (16, 16)], [(10, 6), (16, 16), (10, 6)]])
def test_the_same_bits_as_layers_that_transformers_computes_again(setup, kept, lengths):
    """The first time a size is captured on the way, the second time it is replayed."""
    batches = [make(*x) for x in lengths]
    plain = setup.step(setup.run_padded, batches)
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST, kept)
    assert not any(layer.gradient_checkpointing for layer in setup.layers)
    for _ in range(2):
        losses, gradient, draws = setup.step(graphs, batches)
        assert losses == plain[0]
        assert torch.equal(gradient, plain[1])
        assert torch.equal(draws, plain[2])
    with torch.no_grad():
        evaluated = setup.run(make(5))
    assert evaluated.shape[:2] == (1, 5)


def test_layers_see_the_strides_of_any_tensor(setup):
    """Each other kind of input would be compiled for itself, in the first step."""
    seen = []
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST)
    setup.layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
    setup.step(graphs, [make(16), make(16, 16)])
    hidden = setup.model.config.hidden_size
    assert set(seen) == {(n * hidden, hidden, 1) for n in (16, 32)}


def test_memory_is_that_of_the_longest_pass_until_then(setup):
    seen = []
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST)
    setup.layers[1].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].untyped_storage().nbytes())
    )
    setup.step(graphs, [make(16), make(16, 16), make(16)])
    a_row = LONGEST * setup.model.config.hidden_size * 4
    assert seen == [a_row, a_row, *[2 * a_row] * 4]  # each is computed again in its backward


def watch_memory(layer):
    """Return what will be references to the memory that a layer is run on, and the hook."""
    seen: list[StorageWeakRef] = []
    hook = layer.register_forward_pre_hook(
        lambda _, args: seen.append(StorageWeakRef(args[0].untyped_storage()))
    )
    return seen, hook


def test_a_loss_that_is_still_referred_to_holds_no_memory_of_shorter_passes(setup):
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST)
    seen, _ = watch_memory(setup.layers[1])
    loss = graphs(make(16)).sum()
    loss.backward()
    graphs(make(16, 16)).sum().backward()
    assert loss.grad_fn
    assert [reference.expired() for reference in seen] == [True, True, False, False]


def test_nor_does_it_where_graphs_are_given_up(setup, monkeypatch):
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST)
    seen, hook = watch_memory(setup.layers[1])
    loss = graphs(make(16, 16)).sum()
    loss.backward()
    hook.remove()
    monkeypatch.setattr(FixedLayer, "capture_forward", fail_to_capture)
    with pytest.warns(UserWarning, match="there is none"):
        graphs(make(16)).sum().backward()
    assert loss.grad_fn
    assert all(reference.expired() for reference in seen)


def test_what_a_layer_gave_is_kept_once(setup):
    """In a graph, its own memory would be held until the backward of all layers is captured."""
    gave = []
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST, kept=(0, 1))
    for layer in setup.layers:
        layer.register_forward_hook(
            lambda _, given, out: gave.append(StorageWeakRef(out.untyped_storage()))
        )
    hidden = graphs(make(16))
    assert [reference.expired() for reference in gave] == [True, True]
    hidden.sum().backward()


def test_the_pass_of_a_rank_without_rows_is_not_compiled(setup):
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module

    setup.compile(backend)
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST)
    setup.step(graphs, [make_empty_pass(torch.device("cpu"))])
    assert not compiled
    setup.step(graphs, [make(16)])
    assert compiled


def test_a_rank_without_rows_goes_on_where_graphs_were_given_up(setup, no_memory):
    """What is computed again has to be compiled where what it stands for was."""
    setup.compile("aot_eager")
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST)
    with pytest.warns(UserWarning, match="there are no CUDA graphs"):
        setup.step(graphs, [make(16, 9)])
    losses, gradient, _ = setup.step(graphs, [make_empty_pass(torch.device("cpu"))])
    assert losses == [0.0]
    assert not gradient.any()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kept", [(), (0,)])
@pytest.mark.parametrize("before", [(), (16,)], ids=["first", "after a shorter pass"])
def test_a_layer_that_cannot_be_captured_leaves_those_before_it_as_they_have_run(
    setup, kept, index, before, monkeypatch
):
    batches = [*map(make, before), make(16, 9), make(9)]
    plain = setup.step(setup.run_padded, batches)
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST, kept)
    captured = iter(range(-len(before) * len(setup.layers), len(setup.layers)))

    def fail(self, pool, dice):
        if next(captured) == index:
            torch.rand(5)
            raise torch.OutOfMemoryError("there is none")
        return capture(self, pool, dice)

    capture = FixedLayer.capture_forward
    monkeypatch.setattr(FixedLayer, "capture_forward", fail)
    with pytest.warns(UserWarning, match="there is none"):
        found = setup.step(graphs, batches)
    assert found[0] == plain[0]
    assert torch.equal(found[1], plain[1])
    assert torch.equal(found[2], plain[2])
    assert setup.count_runs(graphs, batches[0]) == [1 if x in kept else 2 for x in (0, 1)]


def test_what_cannot_be_captured_runs_as_it_is(setup, no_memory):
    batches = [make(16, 9), make(9)]
    plain = setup.step(setup.run_padded, batches)
    graphs = LayerGraphs(setup.run, setup.layers, LONGEST)
    with pytest.warns(UserWarning, match="there are no CUDA graphs"):
        found = setup.step(graphs, batches)
    assert found[0] == plain[0]
    assert torch.equal(found[1], plain[1])
    assert setup.count_runs(graphs, batches[0]) == [2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        setup.step(graphs, batches)


class Chain(torch.nn.Module):
    """Layers that a model calls in a way of its own."""

    def __init__(self, way) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.parts = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(3)])
        for part in self.parts:
            part.gradient_checkpointing = False
        self.way = way

    def forward(self, batch) -> torch.Tensor:
        return self.way(self, self.embed(batch["input_ids"]))


class Shared(UserDict):
    """What layers may hand to each other past their results."""


def in_order(model, h):
    for part in model.parts:
        h = part(h)
    return h


def with_a_skip(model, h):
    return model.parts[2](model.parts[1](model.parts[0](h))) + h


def twice(model, h):
    return model.parts[2](model.parts[1](model.parts[0](model.parts[0](h))))


def one_left_out(model, h):
    return model.parts[1](model.parts[0](h))


class Scaled(torch.nn.Linear):
    """Is given more than its input."""

    def forward(self, h, scale=1.0):
        factor = scale["scale"] if isinstance(scale, Shared) else scale
        return super().forward(h) * factor


def given(kind):
    def run(model, h):
        scale = Shared(scale=model.scale) if kind == "object" else model.scale
        for part in model.parts:
            part.__class__ = Scaled
            h = part(h, scale=scale)
        return h

    return run


@pytest.mark.parametrize(
    ("way", "fits"),
    [
        (in_order, True),
        (with_a_skip, True),
        (twice, False),
        (one_left_out, False),
        (given("tensor"), False),
        (given("object"), False),
    ],
)
def test_a_model_of_another_way_has_its_own_gradient(way, fits):
    torch.manual_seed(0)
    model = Chain(way).train()
    flat = FlatParameters(list(model.parameters()))
    batch = make(16)

    def differentiate(run):
        flat.zero_grad()
        run(batch).square().sum().backward()
        flat.collect()
        return flat.gradient.clone()

    plain = differentiate(model)
    graphs = LayerGraphs(model, model.parts, LONGEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [differentiate(graphs) for _ in range(2)]
    assert graphs.is_capturing == fits
    for gradient in found:
        torch.testing.assert_close(gradient, plain)

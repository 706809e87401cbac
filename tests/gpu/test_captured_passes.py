"""Passes that are replayed as CUDA graphs, against the same passes without."""

import warnings
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lit_sft import Lora
from lit_sft.data.batching import pack_batch
from lit_sft.evaluation.decode import decode_batch
from lit_sft.evaluation.evaluating import evaluating
from lit_sft.evaluation.generate import Ending
from lit_sft.model.adapter import attach_lora
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.flat_parameters import FlatParameters
from lit_sft.model.fast.graphs import GraphedDecoder, Size, fit
from lit_sft.model.fast.kernels import compile_layers, make_fast
from lit_sft.model.loss import decode, sum_supervised_loss
from lit_sft.types import IGNORE_INDEX, Example

LONGEST = 96
LENGTHS = st.lists(st.integers(2, LONGEST), min_size=1, max_size=6)


class Setup:
    """A small model with an adapter, in bfloat16, its layers compiled or not."""

    def __init__(self, base, device, compiled: bool = True) -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device)
        model.requires_grad_(False)
        torch.manual_seed(0)
        self.model = attach_lora(model, Lora(r=8, alpha=16), [5]).train()
        make_fast(self.model)
        if compiled:
            compile_layers(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in trained:  # B is zero at first, and so is much of the gradient
            torch.nn.init.normal_(parameter, std=0.02)
        self.flat, self.device, self.trained = FlatParameters(trained), device, trained
        self.run = partial(decode, self.model)
        self.graphed = self.capture(self.run)

    def capture(self, run) -> GraphedDecoder:
        return GraphedDecoder(run, self.trained, self.flat.gradient, LONGEST)

    def step(self, run, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and the gradient of a batch, its dropout from one seed."""
        torch.manual_seed(1)
        self.flat.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = sum_supervised_loss(self.model, batch, hidden=run(batch))
        loss.backward()
        return loss.detach().clone(), self.flat.gradient.clone()

    def run_padded(self, batch) -> torch.Tensor:
        """The way without a graph, in the shapes of one."""
        tokens, rows = batch["input_ids"].shape[1], len(batch["cu_seq_lens"]) - 1
        size = Size(-(-tokens // LONGEST) * LONGEST, 8 * (rows // 8 + 1))
        return self.run(fit(batch, size, LONGEST))[:, :tokens]

    def make(self, lengths, supervised: int | None = None):
        """A packed batch of random tokens; all but the first of a row carry loss, or the last."""
        generator = torch.Generator().manual_seed(sum(lengths))
        rows = []
        for length in lengths:
            ids = torch.randint(500, (length,), generator=generator).tolist()
            kept = length - 1 if supervised is None else supervised
            rows.append(Example(ids, [IGNORE_INDEX] * (length - kept) + ids[length - kept :]))
        batch = pack_batch(rows)
        return {k: v.to(self.device) if hasattr(v, "to") else v for k, v in batch.items()}


@pytest.fixture(scope="module")
def setup(make_base, device):
    if device.type != "cuda":
        pytest.skip("a CPU has no CUDA graphs")
    return Setup(make_base("small"), device)


@pytest.fixture(autouse=True)
def always_deterministic(deterministic):
    """Otherwise no two passes have the same bits."""


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(LENGTHS)
def test_a_graph_gives_the_bits_of_the_pass_that_it_is_of(setup, lengths):
    batch = setup.make(lengths)
    loss, gradient = setup.step(setup.graphed, batch)
    assert setup.graphed.is_capturing
    again, repeated = setup.step(setup.graphed, batch)
    assert torch.equal(again, loss)
    assert torch.equal(repeated, gradient)
    padded, of_padded = setup.step(setup.run_padded, batch)
    assert torch.equal(padded, loss)
    assert torch.equal(of_padded, gradient)


@pytest.mark.parametrize(
    ("lengths", "supervised"),
    [([2], None), ([LONGEST], None), ([LONGEST] * 5, None), ([40, 3, 90], 1), ([7], 1)],
    ids=["shortest", "whole", "full", "one token a row", "one token"],
)
def test_padding_changes_no_more_than_rounding(setup, lengths, supervised):
    batch = setup.make(lengths, supervised)
    setup.model.eval()  # dropout draws by the shape
    try:
        loss, gradient = setup.step(setup.capture(setup.run), batch)
        plain, of_plain = setup.step(setup.run, batch)
    finally:
        setup.model.train()
    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=1e-3)
    assert (gradient - of_plain).norm() <= 0.05 * of_plain.norm()


def test_gradients_of_several_passes_add_up(setup):
    batches = [setup.make([20, 30]), setup.make([90, 90]), setup.make([20, 30, 5])]
    alone = [setup.step(setup.graphed, batch)[1] for batch in batches]
    setup.flat.zero_grad()
    for batch in batches:
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16):
            hidden = setup.graphed(batch)
            sum_supervised_loss(setup.model, batch, hidden=hidden).backward()
    assert torch.equal(setup.flat.gradient, alone[0] + alone[1] + alone[2])


def require_the_same_after_answers(setup, batch, other) -> None:
    """Answer between two passes of a batch, and let another size take what that has left free."""
    loss, gradient = setup.step(setup.graphed, batch)
    use_attention(setup.model, packed=False)
    eager = torch.compiler.set_stance("force_eager")  # as `answer_greedily` runs it
    with evaluating(setup.model), eager, torch.autocast("cuda", torch.bfloat16):
        decode_batch(setup.model, [[7, 8, 9]] * 16, Ending((1,), 0, 20))
    torch.cuda.empty_cache()
    setup.step(setup.graphed, other)
    again, repeated = setup.step(setup.graphed, batch)
    assert setup.graphed.is_capturing
    assert torch.equal(again, loss)
    assert torch.equal(repeated, gradient)


def test_the_graphs_of_answers_take_nothing_along_when_they_end(setup):
    require_the_same_after_answers(setup, setup.make([40, 3, 90]), setup.make([LONGEST] * 5))


def test_what_cannot_be_captured_runs_as_it_is(setup):
    def waits(batch):
        hidden = setup.run(batch)
        hidden.sum().item()
        return hidden

    setup.graphed = setup.capture(setup.run)  # the state of the generator will be another one
    broken = setup.capture(waits)
    batch = setup.make([50, 60])
    with pytest.warns(UserWarning, match="there are no CUDA graphs"):
        loss, gradient = setup.step(broken, batch)
    padded, of_padded = setup.step(setup.run_padded, batch)
    assert torch.equal(padded, loss)
    assert torch.equal(of_padded, gradient)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        setup.step(broken, setup.make([9]))

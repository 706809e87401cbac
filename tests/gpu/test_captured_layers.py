"""Layers that are replayed as CUDA graphs of their own, against the same without graphs."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from test_captured_passes import LENGTHS, LONGEST, Setup, require_the_same_after_answers

from lit_sft.model.fast.kernels import run_uncompiled
from lit_sft.model.fast.layer_graphs import LayerGraphs
from lit_sft.model.fast.memory import find_layers, recompute_layers


class ByLayers(Setup):
    """The small model of four layers, some of which are computed again."""

    def __init__(self, base, device, compiled: bool, kept: tuple[int, ...]) -> None:
        self.kept = kept
        super().__init__(base, device, compiled)

    def capture(self, run) -> LayerGraphs:
        return LayerGraphs(run, find_layers(self.model), LONGEST, self.kept)

    def give_up(self) -> None:
        """Let transformers compute the layers again."""
        run_uncompiled(self.model)
        recompute_layers(self.model, len(find_layers(self.model)))


@pytest.fixture(scope="module", params=["eager", "compiled"])
def compiled(request) -> bool:
    return request.param == "compiled"


@pytest.fixture(scope="module", params=[(), (0, 3), (0, 1, 2, 3)], ids=["none", "two", "all"])
def setup(make_base, device, compiled, request):
    if device.type != "cuda":
        pytest.skip("a CPU has no CUDA graphs")
    return ByLayers(make_base("small"), device, compiled, kept=request.param)


@pytest.fixture(autouse=True)
def always_deterministic(deterministic):
    """Otherwise no two passes have the same bits."""


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(LENGTHS)
def test_graphs_give_the_bits_of_layers_that_are_computed_again(setup, lengths):
    batch = setup.make(lengths)
    loss, gradient = setup.step(setup.graphed, batch)
    assert setup.graphed.is_capturing
    for _ in range(2):
        again, repeated = setup.step(setup.graphed, batch)
        assert torch.equal(again, loss)
        assert torch.equal(repeated, gradient)


@pytest.mark.parametrize("kept", [(), (1, 2), (0, 1, 2, 3)], ids=["none", "two", "all"])
@pytest.mark.parametrize("lengths", [[2], [LONGEST], [LONGEST] * 5, [40, 3, 90]])
def test_against_transformers_own_recomputation(make_base, device, lengths, kept):
    if device.type != "cuda":
        pytest.skip("a CPU has no CUDA graphs")
    setup = ByLayers(make_base("small"), device, compiled=False, kept=kept)
    batch = setup.make(lengths)
    # Another size is captured in the same memory; where it is longer, both are captured anew.
    for other in (batch, setup.make([50, 60]), batch):
        setup.step(setup.graphed, other)
    loss, gradient = setup.step(setup.graphed, batch)
    assert setup.graphed.is_capturing
    setup.give_up()
    plain, of_plain = setup.step(setup.run_padded, batch)
    assert torch.equal(plain, loss)
    assert torch.equal(of_plain, gradient)


def test_the_graphs_of_answers_take_nothing_along_when_they_end(setup):
    require_the_same_after_answers(setup, setup.make([40, 3, 90]), setup.make([30]))

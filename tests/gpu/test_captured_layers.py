"""Layers that are computed again, replayed as CUDA graphs, against the same without graphs."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from test_captured_passes import LENGTHS, LONGEST, Setup

from lit_sft.model.fast.kernels import run_uncompiled
from lit_sft.model.fast.layer_graphs import LayerGraphs
from lit_sft.model.fast.memory import find_layers, recompute_layers

MOST = 6 * LONGEST


class Recomputed(Setup):
    """The small model, all layers of which are computed again."""

    def capture(self, run) -> LayerGraphs:
        return LayerGraphs(run, find_layers(self.model), LONGEST, MOST)

    def give_up(self) -> None:
        """Let transformers compute the layers again."""
        run_uncompiled(self.model)
        recompute_layers(self.model, len(find_layers(self.model)))


@pytest.fixture(scope="module", params=["eager", "compiled"])
def setup(make_base, device, request):
    if device.type != "cuda":
        pytest.skip("a CPU has no CUDA graphs")
    return Recomputed(make_base("small"), device, compiled=request.param == "compiled")


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


@pytest.mark.parametrize("lengths", [[2], [LONGEST], [LONGEST] * 5, [40, 3, 90]])
def test_against_transformers_own_recomputation(make_base, device, lengths):
    if device.type != "cuda":
        pytest.skip("a CPU has no CUDA graphs")
    setup = Recomputed(make_base("small"), device, compiled=False)
    batch = setup.make(lengths)
    loss, gradient = setup.step(setup.graphed, batch)
    assert setup.graphed.is_capturing
    setup.give_up()
    plain, of_plain = setup.step(setup.run_padded, batch)
    assert torch.equal(plain, loss)
    assert torch.equal(of_plain, gradient)

"""What is noted of a pass without contents is what a real one does."""

import pytest
import torch
from torch import nn

from lit_sft import Lora
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import Quantization, load_base, outline, read_base_config
from lit_sft.model.fast.kernels import make_fast
from lit_sft.model.fast.memory import (
    PROBED_TOKENS,
    cache_weights,
    count_bytes_per_token,
    count_kept_bytes,
    find_layers,
    recompute_layers,
)
from lit_sft.model.loss import decode
from lit_sft.plan.memory_plan import count_batch_rows, repeat_history
from lit_sft.plan.operations import noting, time_operations
from lit_sft.plan.time_plan import note_pass
from lit_sft.plan.weightless import Weightless, make_mode

CPU = torch.device("cpu")
ROWS = [30, 12, 20]


class Precision:
    """Float32: no autocast."""

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None


@pytest.fixture
def weightless(tiny_base):
    base = outline("a base", read_base_config(str(tiny_base)))
    return Weightless(base, Lora(), 2, torch.float32, CPU)


@pytest.fixture
def loaded(tiny_base):
    base = load_base(str(tiny_base), Quantization(), torch.float32, CPU)
    cache_weights(base, "auto", torch.float32, CPU)
    model = attach_lora(base, Lora(), [3, 4])
    make_fast(model)
    return model


def test_nothing_has_contents(weightless):
    assert sum(p.numel() for p in weightless.model.parameters()) > 100_000
    for tensor in (*weightless.model.parameters(), *weightless.model.buffers()):
        assert tensor.untyped_storage().device.type == "meta"


@pytest.mark.parametrize("packed", [True, False])
def test_it_keeps_what_the_loaded_model_keeps(weightless, loaded, packed):
    batch = weightless.make_batch([PROBED_TOKENS], packed)
    with weightless.mode:
        kept = count_kept_bytes(weightless.model, lambda: decode(weightless.model, batch))
    per_token = kept / PROBED_TOKENS / len(find_layers(weightless.model))
    assert per_token == pytest.approx(count_bytes_per_token(loaded, CPU, packed), rel=0.1)


@pytest.mark.parametrize("packed", [True, False])
def test_recomputed_layers_hold_less_and_compute_more(weightless, packed):
    plain = note_pass(weightless, ROWS, packed, Precision())
    recompute_layers(weightless.model, len(find_layers(weightless.model)))
    again = note_pass(weightless, ROWS, packed, Precision())
    assert again.forward.live_bytes < plain.forward.live_bytes / 3
    assert again.whole.peak_bytes < plain.whole.peak_bytes
    forward = plain.forward.flops
    assert again.whole.flops == pytest.approx(plain.whole.flops + forward, rel=0.05)


def test_a_product_has_two_operations_a_weight_and_a_token():
    layer, mode = nn.Linear(8, 16, bias=False), make_mode()
    with mode:
        layer.weight = nn.Parameter(torch.empty(16, 8))
        x = torch.empty(5, 8)
    with noting(layer, mode) as noted:
        y = layer(x)
        del y
    assert noted.flops == 2 * 5 * 8 * 16
    assert (noted.peak_bytes, noted.live_bytes) == (5 * 16 * 4, 0)
    assert noted.history == [(0, 5 * 16 * 4), (0, -1)]
    assert list(noted.counts.values()) == [1]


def test_the_operations_of_a_pass_match_the_arithmetic_of_a_llama(weightless, tiny_base):
    """Two operations a weight, a token and direction; of attention, half of the pairs."""
    config = read_base_config(str(tiny_base))
    hidden, inner, tokens = config.hidden_size, config.intermediate_size, sum(ROWS)
    keys = config.num_key_value_heads * (hidden // config.num_attention_heads)
    base = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    update = 32 * (2 * (hidden + hidden) + 2 * (hidden + keys))
    pairs = sum(n * n for n in ROWS) * hidden / 2
    expected = config.num_hidden_layers * (2 * tokens * (base + update) + 4 * pairs)
    noted = note_pass(weightless, ROWS, True, Precision())
    assert noted.forward.flops == pytest.approx(expected, rel=0.02)


def test_operations_are_timed_once_a_kind(weightless):
    noted, known = note_pass(weightless, ROWS, True, Precision()).whole, {}
    seconds = time_operations(noted.counts, CPU, known)
    assert seconds > 0
    assert known.keys() == noted.counts.keys()
    assert len(known) < sum(noted.counts.values())
    assert time_operations(noted.counts, CPU, known) == seconds


def test_a_history_takes_the_memory_that_it_says():
    one = [(0, 60 * 2**20), (0, -1), (1, 40 * 2**20)]
    assert 50 * 2**20 < repeat_history([one], CPU) < 110 * 2**20


@pytest.mark.parametrize(("most", "rows"), [(100, 5), (60, 3), (5, 1)])
def test_a_batch_of_answers_is_cut_as_they_are_generated(most, rows):
    assert count_batch_rows([12, 12, 9, 5, 5], 8, most) == rows
    assert count_batch_rows([], 8, most) == 0

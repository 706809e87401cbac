"""A rank that is out of memory, within a pass and between two."""

import pytest
import torch
from architectures import build
from ranks import Ranks

from lit_sft import Quantization
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.sharded.in_step import fill_up, keep_in_step, make_empty_pass
from lit_sft.model.sharded.sharded_base import load_sharded_base

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 33]])


@pytest.fixture
def ranks(tmp_path):
    group = Ranks(2, tmp_path)
    yield group
    group.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build("Llama", vocabulary=97).save_pretrained(folder)
    return str(folder)


def run(base, passes, fails):
    """Take some passes; then memory runs out, in the middle of one or behind it."""
    model = load_sharded_base(base, Quantization(), torch.float32, CPU).model
    use_attention(model, packed=False)

    def fail(*args):
        raise torch.OutOfMemoryError

    try:
        with keep_in_step(model):
            for _ in range(passes):
                last = model(IDS, use_cache=False).logits
            if fails == "within":
                model.model.layers[1].register_forward_pre_hook(fail)
                model(IDS, use_cache=False)
            if fails == "behind":
                fail()
    except torch.OutOfMemoryError:
        return "left out"
    return last


def test_the_others_come_to_their_end_without_it(ranks, base):
    left, whole = ranks.run(run, [(base, 1, "behind"), (base, 4, "")])
    assert left == "left out"
    again = ranks.run(run, [(base, 1, ""), (base, 2, "")])
    assert torch.equal(whole, again[1]), "and the next time all is as before"


def test_within_a_pass_it_is_told(ranks, base):
    with pytest.raises(AssertionError, match="a rank that runs out of memory within a pass cannot"):
        ranks.run(run, [(base, 1, "within"), (base, 4, "")])


def test_a_model_that_is_whole_is_left_alone():
    model = build("Llama", vocabulary=97)
    window = [make_empty_pass(CPU)]
    assert fill_up(model, window, CPU) is window
    with keep_in_step(model):
        assert torch.is_grad_enabled(), "nothing is done"

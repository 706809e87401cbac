"""Cards that others use, and a torch that cannot exchange gradients: said before weights load."""

import pytest
import torch

from lit_sft.errors import InputError
from lit_sft.model.cards import describe_use, require_free, require_transport

GIB = 2**30


def test_a_card_that_others_use_is_named_with_how_much():
    told = describe_use("cuda:1 (H100)", 20 * GIB, 79 * GIB)
    assert "cuda:1 (H100): others use 59.0 of its 79.0 GiB" in told
    assert "\n" not in told


@pytest.mark.parametrize(("free", "own"), [(79, 0), (77.5, 0), (20, 58)])
def test_what_this_process_takes_is_not_others(free, own):
    assert describe_use("cuda:0", int(free * GIB), 79 * GIB, own * GIB) == ""


def test_a_cpu_has_no_memory_to_ask_for():
    require_free(torch.device("cpu"))


def test_several_gpus_without_nccl_are_refused():
    with pytest.raises(InputError, match="4 GPUs exchange gradients by NCCL, which this build"):
        require_transport("cuda", 4, has_nccl=False)
    require_transport("cuda", 1, has_nccl=False)
    require_transport("cpu", 4, has_nccl=False)
    require_transport("cuda", 4, has_nccl=True)

"""When a base is shared out, and what is refused then."""

import pytest

from lit_sft import Lora, SFTModule, Speed
from lit_sft.errors import InputError
from lit_sft.model.figures import GIB
from lit_sft.model.sharded.choice import does_fit, does_stay_whole, require_shardable


@pytest.mark.parametrize(
    ("needed", "free", "fits"),
    [(6.2, 23.5, True), (41.3, 78.5, True), (41.3, 47.5, False), (2.4, 5.0, False)],
    ids=["8B, 24 GB", "70B, 80 GB", "70B, 48 GB", "3B, 5 GB"],
)
def test_a_base_fits_with_room_for_a_step(needed, free, fits):
    assert does_fit(needed * GIB, free * GIB) is fits


@pytest.mark.parametrize(
    ("free", "earlier", "stays"),
    [
        (52, None, True),
        (52, "fsdp2", False),  # though it would fit
        (52, "ddp", True),
        (45, None, False),
        (45, "ddp", True),  # less than a new run asks for, and enough
        (43, "ddp", False),
    ],
)
def test_a_run_that_goes_on_holds_its_base_as_it_did(free, earlier, stays):
    assert does_stay_whole(41.3 * GIB, free * GIB, earlier) is stays


def test_it_is_said_where_fsdp2_came_from():
    with pytest.raises(InputError, match="auto goes on as the run did, by fsdp2, which shards a"):
        require_shardable(SFTModule("a base", lora=Lora(use_dora=True)), "fsdp2")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lora": None}, "model.lora: null trains all of it; use ddp"),
        ({"lora": Lora(use_dora=True)}, "model.lora.use_dora takes the norms of whole weights"),
        ({"lora": Lora(init_weights="pissa")}, "init_weights pissa decomposes whole weights"),
    ],
)
def test_what_needs_whole_weights_is_refused(options, says):
    with pytest.raises(InputError, match=says) as refused:
        require_shardable(SFTModule("a base", **options))
    assert str(refused.value).startswith("trainer.strategy: fsdp2 shards a frozen base")


def test_the_rest_is_not():
    require_shardable(SFTModule("a base", speed=Speed(compile=True)))

"""What a rank does when the first one is gone, which has held the store at which they have met."""

import multiprocessing
import os
import time

import pytest
from forks import find_port
from torch import distributed

from lit_sft.model import peers
from lit_sft.signals import SIGNALS


def meet(rank: int, port: int) -> None:
    about = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in about.items()}
    distributed.init_process_group("gloo")
    if rank == 0:
        time.sleep(0.75)  # between two looks
        os._exit(0)


def wait(port: int) -> None:
    meet(1, port)
    soon = peers.PEERS.wait_for_first(0.01)
    started = time.monotonic()
    later = peers.PEERS.wait_for_first(20.0)
    is_quick = time.monotonic() - started < 5.0
    peers.PEERS.tell(1, "too late")
    is_told = peers.PEERS.find_failure() is not None
    os._exit(7 if (soon, later, is_quick, is_told) == (False, True, True, False) else 1)


def listen(port: int) -> None:
    peers.LONG_PATIENCE = 0.1
    os.environ["LOCAL_RANK"] = "0"
    SIGNALS.own_process("stopped")
    meet(1, port)
    peers.PEERS.listen()
    time.sleep(20.0)
    os._exit(0)


@pytest.mark.parametrize(
    ("what", "status", "says"), [(wait, 7, ""), (listen, 1, peers.GONE)], ids=["wait", "listen"]
)
def test_that_the_first_rank_is_gone_is_seen_without_a_dump_of_torch_s(capfd, what, status, says):
    port, forking = find_port(), multiprocessing.get_context("fork")
    ranks = [
        forking.Process(target=meet, args=(0, port)),
        forking.Process(target=what, args=(port,)),
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(30.0)
    printed = capfd.readouterr().err
    assert [rank.exitcode for rank in ranks] == [0, status], printed
    assert printed == (f"error: {says}\n" if says else "")


def test_ranks_that_have_not_met_wait_for_none():
    assert peers.PEERS.wait_for_first(0.01) is None

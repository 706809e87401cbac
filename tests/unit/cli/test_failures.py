"""How a run of several ranks that failed explains itself."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from lit_sft.cli.failures import conclude, explain
from lit_sft.errors import InputError
from lit_sft.model.peers import Failure, is_for_another


def test_a_port_that_is_taken_is_named():
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True)
    raised = _raise(lambda: distributed.TCPStore("127.0.0.1", store.port, is_master=True))
    status, text = explain(raised)
    assert status == 2
    assert text.startswith(f"error: port {store.port} of this machine is taken")
    assert "set MASTER_PORT" in text
    assert "\n" not in text


def test_devices_that_are_not_there_are_a_line():
    text = "You requested gpu: [0, 1, 2]\n But your machine only has: [0, 1]"
    assert explain(MisconfigurationException(text)) == (
        2,
        "error: You requested gpu: [0, 1, 2] But your machine only has: [0, 1]",
    )


def test_a_card_that_belongs_to_another_process_is_a_line():
    text = "CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might"
    status, told = explain(RuntimeError(text))
    assert (status, told.count("\n")) == (2, 0)
    assert "a card cannot be used: all CUDA-capable devices are busy or unavailable" in told


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]"), True),
        (RuntimeError("ncclRemoteError: A call failed possibly due to a network error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (InputError("a row is broken by peer review"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
    ids=str,
)
def test_a_rank_knows_whether_another_one_is_to_blame(error, is_it):
    assert is_for_another(error) == is_it


def test_the_only_rank_tells_its_own_error_once_and_a_bug_by_its_traceback(capsys):
    assert conclude(InputError("no such row"), parent=1) == 2
    assert capsys.readouterr().err == "error: no such row\n"
    with pytest.raises(KeyError):
        conclude(KeyError("bug"), parent=1)


def test_a_failure_names_its_rank():
    failure = Failure(3, "b", 2, "no such row")
    assert str(failure) == "rank 3 (b): no such row"


def _raise(function) -> Exception:
    with pytest.raises(RuntimeError) as raised:
        function()
    return raised.value

"""What a device computes natively decides the precision, a small model takes few threads."""

import pytest
import torch

from lit_sft.errors import InputError
from lit_sft.model.device import (
    SAID_BY_USER,
    Device,
    choose_precision,
    count_threads,
    describe_device,
    find_device,
    limit_threads,
    measure_slowdown,
    require_precision,
)

AMX = Device("this CPU", is_cpu=True, has_bf16=True)
AVX2 = Device("this CPU", is_cpu=True, has_bf16=False)
H100 = Device("NVIDIA H100 (compute capability 9.0)", is_cpu=False, has_bf16=True)
T4 = Device("Tesla T4 (compute capability 7.5)", is_cpu=False, has_bf16=False)


@pytest.mark.parametrize(
    ("device", "precision", "reason"),
    [
        (AMX, "bf16-mixed", "this CPU computes bf16 natively"),
        (H100, "bf16-mixed", "NVIDIA H100 (compute capability 9.0) computes bf16 natively"),
        (AVX2, "32-true", "this CPU emulates bf16, which is many times slower"),
        (T4, "32-true", "Tesla T4 (compute capability 7.5) has no bf16 arithmetic"),
    ],
)
def test_left_open_it_is_what_the_device_computes(device, precision, reason):
    assert choose_precision(device) == (precision, reason)


@pytest.mark.parametrize("device", [AMX, AVX2, H100, T4])
def test_fp32_is_for_every_device(device):
    for asked in ("32-true", "32", 32):
        assert require_precision(asked, device) == "32-true"


@pytest.mark.parametrize("device", [AMX, AVX2, H100])
def test_bf16_is_obeyed_also_where_it_is_emulated(device):
    for asked in ("bf16-mixed", "bf16"):
        assert require_precision(asked, device) == "bf16-mixed"


def test_a_gpu_without_bf16_is_named():
    with pytest.raises(InputError, match=r"Tesla T4 \(compute capability 7\.5\) has no bf16"):
        require_precision("bf16-mixed", T4)


@pytest.mark.parametrize("asked", ["16-mixed", "bf16-true", "64-true", 16, "fast", ""])
def test_what_there_is_not_is_refused_on_every_device(asked):
    for device in (AMX, H100):
        with pytest.raises(InputError, match=f"must be bf16-mixed or 32-true.* got {asked}$"):
            require_precision(asked, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the trainer would take the GPU")
def test_this_machine_is_a_cpu_that_agrees_with_onednn():
    device = describe_device(find_device("auto"))
    assert device.is_cpu
    if device.has_bf16:
        assert torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_fp32_is_taken_on_a_cpu_that_is_asked_for():
    assert find_device("cpu") == torch.device("cpu")


def test_the_slowdown_is_a_ratio():
    threads = torch.get_num_threads()
    assert measure_slowdown(rows=8, width=8, seconds=0.001) > 0
    assert torch.get_num_threads() == threads


@pytest.fixture
def eight_threads(monkeypatch):
    """Eight threads and no wishes of a user; afterwards as before."""
    for name in SAID_BY_USER:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("eight_threads")
@pytest.mark.parametrize(
    ("width", "available", "threads"),
    [(64, 64, 1), (256, 2, 1), (512, 64, 2), (1024, 64, 8), (3072, 64, 64), (3072, 0, 1)],
)
def test_they_grow_with_the_model(width, available, threads):
    assert count_threads(width, available) == threads


@pytest.mark.usefixtures("eight_threads")
def test_ranks_share_the_cores_and_inherit_the_number(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "x")  # so that what is set here is taken back
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads(width=3072, processes=2)
    assert torch.get_num_threads() == 4
    limit_threads(width=256, processes=1)
    assert torch.get_num_threads() == 4  # what the first has set now stands like a user's


@pytest.mark.usefixtures("eight_threads")
@pytest.mark.parametrize("name", SAID_BY_USER)
def test_what_the_user_has_set_stands(monkeypatch, name):
    monkeypatch.setenv(name, "8")
    limit_threads(width=64, processes=1)
    assert torch.get_num_threads() == 8
    monkeypatch.delenv(name)
    limit_threads(width=64, processes=1)
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("eight_threads")
def test_a_user_who_has_set_fewer_keeps_them():
    torch.set_num_threads(2)
    limit_threads(width=4096, processes=1)
    assert torch.get_num_threads() == 2

"""Runs on several cards of one machine."""

from functools import partial

import pytest
import torch
from card_runs import KILLED_AT, Result, fit, read_result, run_together, run_whole, write_config
from safetensors.torch import load

from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

pytestmark = pytest.mark.timeout(900)

EXACT = ("--trainer.precision", "32-true", "--model.lora.dropout", 0.0)


ROWS = 16
"""Of a window, two of them a pass."""


@pytest.fixture
def cards(device) -> int:
    """How many are taken: of 3 or 6, as many as share out a window evenly, and half of them too."""
    if device.type == "cpu":
        return 2
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device; this takes two or more")
    return max(x for x in (2, 4, ROWS // 2) if x <= torch.cuda.device_count())


def on(count: int, strategy: str) -> tuple[object, ...]:
    """Options with which as many cards as `count` train the windows that one would."""
    own = ("--trainer.strategy", strategy) if count > 1 else ()
    rows = ("--data.batch_size", 2, "--data.accumulate_grad_batches", ROWS // 2 // count)
    return "--trainer.devices", count, *rows, *own


def read_losses(result: Result) -> list[float]:
    return [float(row["train/loss"]) for row in result.figures[1:]]


def read_norms(result: Result) -> list[float]:
    return [float(row["train/grad_norm"]) for row in result.figures[1:]]


def assert_near(result: Result, wanted: Result, rel: float = 1e-4) -> None:
    assert read_losses(result) == pytest.approx(read_losses(wanted), rel=rel)
    ours, theirs = (load(x.adapter["adapter_model.safetensors"]) for x in (result, wanted))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("kernels", ["eager", "compiled"])
def test_two_train_as_one_does_and_twice_the_same(make_base, device, cards, tmp_path, kernels):
    base = make_base("tiny" if device.type == "cpu" else "small")
    arms = {"one": on(1, "auto"), "a": on(2, "ddp"), "b": on(2, "ddp")}
    one, *both = run_together(
        partial(run_whole, tmp_path / name, base, device, kernels, *EXACT, *arm)
        for name, arm in arms.items()
    )
    assert both[0] == both[1]
    assert_near(both[0], one)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_base_that_they_share_is_the_one_that_each_holds(
    make_base, device, cards, tmp_path, precision
):
    """Gathered on a card, codes have to be the bytes that they were: see `quantized.join`."""
    base = make_base("tiny" if device.type == "cpu" else "small")
    options = ("--trainer.precision", precision, "--model.quantization.weight_cache", "none")
    ddp, fsdp2 = run_together(
        partial(run_whole, tmp_path / x, base, device, "eager", *options, *on(2, x))
        for x in ("ddp", "fsdp2")
    )
    assert fsdp2 == ddp


@pytest.mark.parametrize("recomputed", ["auto", "every_n"])
def test_captured_layers_read_what_is_gathered(make_base, device, cards, tmp_path, recomputed):
    """Twice the same bytes, and the figures of layers that are run as they are."""
    base = make_base("tiny" if device.type == "cpu" else "small")
    options = ("--model.lora.dropout", 0.0, *on(2, "fsdp2"))
    first, second, eager = run_together(
        partial(run_whole, tmp_path / name, base, device, kernels, *options, recomputed=recomputed)
        for name, kernels in (("a", "compiled"), ("b", "compiled"), ("c", "eager"))
    )
    assert first == second
    assert read_losses(first) == pytest.approx(read_losses(eager), rel=1e-2)
    assert read_norms(first) == pytest.approx(read_norms(eager), rel=5e-2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_is_killed_and_half_of_them_go_on(make_base, device, cards, tmp_path, strategy):
    """In a window; the others end, and the checkpoint of the step before is for any number."""
    base = make_base("tiny" if device.type == "cpu" else "small")
    whole = run_whole(tmp_path / "whole", base, device, "eager", *EXACT, *on(cards, strategy))
    strike = {"step": KILLED_AT, "number": 9, "rank": cards - 1}
    killer = {"class_path": "killers.Signal", "init_args": strike}
    config = write_config(tmp_path / "killed", base, device, "eager", killer)
    killed = fit(config, *EXACT, *on(cards, strategy))
    assert killed.returncode in (1, -9), killed.stdout + killed.stderr
    saved = AtomicCheckpointIO().load_checkpoint(RunFolder(config.parent / "run").last_checkpoint)
    assert saved["global_step"] == KILLED_AT - 1
    resumed = fit(config, "--ckpt_path", "last", *EXACT, *on(cards // 2, strategy))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert_near(read_result(config.parent), whole, rel=1e-5)

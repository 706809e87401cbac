"""What a run decides for itself, and what it takes from a checkpoint instead."""

import sys
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch._inductor.async_compile
import torch._inductor.config

from lit_sft import GradientCheckpointing, SFTDataModule, SFTModule, Speed, WordProblems
from lit_sft.data.protocol import SizedData
from lit_sft.errors import InputError
from lit_sft.model.fast.memory import find_layers
from lit_sft.model.pace import LARGEST_PASS, choose_tokens, does_compiling_pay, start_compilers

GIB = 2**30


def sizes(batch_size=4, accumulated=4, max_length=512) -> SizedData:
    return SimpleNamespace(
        batch_size=batch_size, accumulate_grad_batches=accumulated, max_length=max_length
    )


@pytest.mark.parametrize(
    ("data", "free", "expected"),
    [
        (sizes(), 60 * GIB, 8192),  # a whole step
        (sizes(), 16 * GIB, 4096),
        (sizes(), 4 * GIB, 2048),  # a batch, which recomputation may make fit
        (sizes(), 0, 2048),
        (sizes(accumulated=3), 60 * GIB, 4096),
        (sizes(accumulated=64), 10_000 * GIB, LARGEST_PASS),
        (sizes(batch_size=64), 10_000 * GIB, 64 * 512),  # asked for
        (sizes(accumulated=1), 60 * GIB, 2048),
    ],
)
def test_a_pass_is_as_large_as_memory_and_the_step_allow(data, free, expected):
    per_token = 2**16  # of one layer: 14 GiB for 8,192 tokens in 28 layers
    assert choose_tokens(data, per_token, layers=28, free=free) == expected


def test_compiling_has_to_repay_itself():
    assert does_compiling_pay(layers=28, steps=1_350)
    assert not does_compiling_pay(layers=28, steps=100)
    assert not does_compiling_pay(layers=4, steps=600)


@pytest.mark.parametrize(
    ("device", "compiles", "starts"),
    [("cuda", "auto", 1), ("cuda", True, 1), ("cuda", False, 0), ("cpu", True, 0)],
)
def test_compilers_start_where_layers_may_be_compiled(monkeypatch, device, compiles, starts):
    calls = []
    monkeypatch.setattr(torch._inductor.async_compile, "maybe_warm_pool", lambda: calls.append(1))
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = SimpleNamespace(strategy=strategy)
    start_compilers(SimpleNamespace(trainer=trainer, speed=Speed(compile=compiles)))
    assert len(calls) == starts


def train(base, root, checkpoint=None, **options) -> SFTModule:
    speed, callbacks = options.pop("speed", Speed()), options.pop("callbacks", None)
    data = {"val_rows": 0, "max_length": 600} | options
    module = SFTModule(str(base), speed=speed)
    trainer = pl.Trainer(
        max_steps=2 if checkpoint else 1,
        default_root_dir=root,
        callbacks=callbacks,
        accelerator="cpu",
        precision="32-true",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    task = WordProblems(train_rows=40)
    trainer.fit(module, SFTDataModule(task, **data), ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.fixture
def checkpoint(tiny_base, tmp_path):
    """A function that writes the checkpoint of a run, with what it says of itself changed."""
    module = train(tiny_base, tmp_path)
    module.trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)

    def write(strategy="one device", **changed) -> str:
        settings = saved["settings"] | {"trainer.strategy": strategy}
        changes = {"run": saved["run"] | changed, "settings": settings}
        torch.save(saved | changes, tmp_path / "changed.ckpt")
        return str(tmp_path / "changed.ckpt")

    return write


def test_a_cpu_decides_for_small_passes_that_are_not_compiled(tiny_base, tmp_path):
    module = train(tiny_base, tmp_path)
    assert module.speed == Speed(compile=False)
    assert module.trainer.datamodule.max_tokens_per_pass == 4 * 600


def test_a_resumed_run_keeps_what_was_decided(tiny_base, tmp_path, checkpoint):
    path = checkpoint(**{"data.max_tokens_per_pass": 9_600, "model.speed.compile": False})
    module = train(tiny_base, tmp_path, path)
    assert module.trainer.datamodule.max_tokens_per_pass == 9_600
    with pytest.raises(InputError, match="max_tokens_per_pass: was 9600, is now 2400"):
        train(tiny_base, tmp_path, path, max_tokens_per_pass=2_400)
    with pytest.raises(InputError, match=r"speed\.compile: was False, is now True"):
        train(tiny_base, tmp_path, path, speed=Speed(compile=True))


@pytest.mark.parametrize(("before", "asked", "now"), [(False, True, True), (True, "auto", False)])
def test_what_a_strategy_forced_is_decided_anew_with_another(
    tiny_base, tmp_path, checkpoint, capsys, before, asked, now
):
    path = checkpoint("fsdp2", **{"model.speed.compile": before})
    with torch.compiler.set_stance("force_eager"):  # to compile takes long
        module = train(tiny_base, tmp_path, path, speed=Speed(compile=asked))
    assert module.speed == Speed(compile=now)
    told = f"model.speed.compile was {before}, is now {now}: the run goes on with the same"
    assert capsys.readouterr().out.count(told) == 1


def test_what_it_comes_to_again_is_not_told(tiny_base, tmp_path, checkpoint, capsys, caplog):
    caplog.set_level("INFO", "lightning.pytorch")
    train(tiny_base, tmp_path, checkpoint("fsdp2", **{"model.speed.compile": False}))
    assert "model.speed.compile" not in capsys.readouterr().out
    told = "trainer.strategy was fsdp2, is now one device; layers that are compiled round otherwise"
    assert told in caplog.text


class FailOnce(pl.Callback):
    """The first layer fails, and notes the next time whether that error is still held."""

    def __init__(self) -> None:
        self.held: list[object] = []

    def on_fit_start(self, trainer, module) -> None:
        find_layers(module.model)[0].register_forward_pre_hook(self.note)

    def note(self, *args) -> None:
        self.held.append(sys.exc_info()[0])
        if len(self.held) == 1:
            raise torch.OutOfMemoryError("there is none")


def test_a_pass_that_failed_is_gone_when_another_is_tried(tiny_base, tmp_path, caplog):
    """Its error would hold all memory of the pass."""
    caplog.set_level("INFO", "lightning.pytorch")
    failing = FailOnce()
    with torch.compiler.set_stance("force_eager"):  # to compile takes long
        module = train(tiny_base, tmp_path, speed=Speed(compile=True), callbacks=[failing])
    assert module.speed == Speed(compile=False)
    assert "compiled, a first pass failed (there is none)" in caplog.text
    assert failing.held == [None] * len(failing.held)


def test_compiled_layers_that_are_computed_again_stay_compiled(tiny_base, tmp_path, monkeypatch):
    """What transformers does to compute them again is a part of a layer that is not compiled."""
    ran: list[int] = []

    def backend(graph, inputs, **options):
        return lambda *given: ran.append(1) or graph(*given)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda x, **more: compile_(x, backend=backend, **more))
    recompute = GradientCheckpointing("all")
    module = train(tiny_base, tmp_path, speed=Speed(compile=True), callbacks=[recompute])
    assert ran
    for layer in find_layers(module.model):
        assert layer._compiled_call_impl is None, "nothing is left behind the run"


@pytest.mark.slow
def test_layers_that_cannot_be_compiled_are_run_as_they_are(
    tiny_base, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "lightning.pytorch")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    compiler = ("no-such-compiler",)
    with torch._inductor.config.patch({"cpp.cxx": compiler, "force_disable_caches": True}):
        module = train(tiny_base, tmp_path, speed=Speed(compile=True))
    assert module.speed == Speed(compile=False)
    assert "run as they are, which is slower: compiled, a first pass failed" in caplog.text
    assert module.trainer.global_step == 1

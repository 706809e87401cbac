"""What the module promises beyond the numbers: modes, memory tricks, checkpoints, refusals."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from architectures import build
from plain_module import PlainModule
from tiny_tokenizer import build_tiny_tokenizer
from torch.utils.data import DataLoader

from lit_sft import (
    GradientCheckpointing,
    Lora,
    Quantization,
    SFTDataModule,
    SFTModule,
    WordProblems,
)
from lit_sft.data.batching import pack_batch
from lit_sft.errors import InputError, NonFiniteError
from lit_sft.model.fast.embedding import _on_device
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.model.saved_adapter import require_same_shapes

DTYPE = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


def make_trainer(root, steps=2, precision="32-true", **kwargs) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps,
        default_root_dir=root,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **kwargs,
    )


def make_run(base, kind=SFTModule, **module_args):
    module_args = {"learning_rate": 1e-2, "lora": Lora(r=4, alpha=8)} | module_args
    data = SFTDataModule(WordProblems(train_rows=64), val_rows=8, max_length=600)
    return kind(str(base), **module_args), data


def gradient_of(module, batch, seed=0) -> torch.Tensor:
    """Every trained parameter's gradient of one batch, end to end."""
    torch.manual_seed(seed)
    module.zero_grad()
    sum_supervised_loss(module.model, batch).backward()
    return torch.cat([p.grad.flatten() for p in module.trained_parameters.values()])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_validation_leaves_the_gradient_alone(tiny_base, tmp_path, precision):
    """bitsandbytes packs CPU weights in eval mode, and then drops gradients without a word."""
    module, data = make_run(tiny_base)
    trainer = make_trainer(tmp_path, precision=precision)
    trainer.fit(module, data)
    batch = data.train_dataloader().dataset[[0, 1, 2]][0]
    module.train()
    with trainer.precision_plugin.forward_context():
        before = gradient_of(module, batch)
    trainer.validate(module, data, verbose=False)
    module.train()
    with trainer.precision_plugin.forward_context():
        after = gradient_of(module, batch)
    assert before.norm() > 0
    assert torch.equal(before, after)


@pytest.mark.parametrize("what", ["predict", "validate"])
def test_training_after_another_command_of_one_module_is_training_alone(tiny_base, tmp_path, what):
    """What is asked of a model first runs in inference mode, whose tensors autograd refuses."""
    weights = []
    for before in (what, None):
        _on_device.cache_clear()
        module, data = make_run(tiny_base, trainable_tokens=["<|eot_id|>"], max_new_tokens=2)
        if before:
            first = make_trainer(tmp_path, limit_predict_batches=1, limit_val_batches=1)
            data.predict_on = "val"
            getattr(first, before)(module, data)
        make_trainer(tmp_path, limit_val_batches=0).fit(module, data)
        assert module._is_probed
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)


def test_validation_changes_no_step(tiny_base, tmp_path):
    losses = []
    for limit in (0, 1.0):
        module, data = make_run(tiny_base)
        trainer = make_trainer(tmp_path, steps=4, val_check_interval=1, limit_val_batches=limit)
        trainer.fit(module, data)
        losses.append(trainer.callback_metrics["train/loss"].item())
    assert "val/loss" in trainer.callback_metrics
    assert losses[0] == losses[1]


class LayerCalls(pl.Callback):
    """Counts the forwards of the first decoder layer."""

    def on_fit_start(self, trainer, pl_module) -> None:
        self.count = 0
        layer = pl_module.model.get_base_model().model.layers[0].mlp
        # before, not after: a recomputation stops as soon as it has what the backward needs
        layer.register_forward_pre_hook(lambda *args: self.add())

    def add(self) -> None:
        self.count += 1


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(tiny_base, tmp_path):
    outcomes = {}
    recompute = GradientCheckpointing("all")
    for name, callbacks in {"plain": [], "checkpointed": [recompute]}.items():
        module, data = make_run(tiny_base)
        calls = LayerCalls()
        make_trainer(tmp_path, callbacks=[*callbacks, calls]).fit(module, data)
        counted = calls.count
        module.train()
        batch = data.train_dataloader().dataset[[0, 1, 2]][0]
        outcomes[name] = counted, gradient_of(module, batch), module.trained_parameters
    assert outcomes["plain"][0] == 2 * 2  # 2 steps of 2 passes
    assert outcomes["checkpointed"][0] == 2 * 4  # and every forward once more
    assert torch.equal(outcomes["plain"][1], outcomes["checkpointed"][1])
    for name, parameter in outcomes["plain"][2].items():
        assert torch.equal(parameter, outcomes["checkpointed"][2][name])


def test_the_base_is_frozen_in_four_bits_and_the_adapter_in_fp32(tiny_base, tmp_path):
    module, data = make_run(tiny_base, quantization=Quantization(weight_cache="none"))
    make_trainer(tmp_path, precision="bf16-mixed").fit(module, data)
    assert {p.dtype for p in module.trained_parameters.values()} == {torch.float32}
    assert all("lora_" in name for name in module.trained_parameters)
    layer = module.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.quant_state.nested
    assert layer.weight.quant_state.quant_type == "nf4"
    assert module.model.training


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_cache_of_the_weights_changes_no_bit(tiny_base, tmp_path, precision):
    trained = {}
    for cache in ("none", "auto"):
        module, data = make_run(tiny_base, quantization=Quantization(weight_cache=cache))
        trainer = make_trainer(tmp_path, 3, precision, val_check_interval=1)
        trainer.fit(module, data)
        layer = module.model.get_base_model().model.layers[0].mlp.up_proj
        assert layer.weight.dtype == (torch.uint8 if cache == "none" else DTYPE[precision])
        assert (module.cached_bytes > 0) == (cache == "auto")
        trained[cache] = [*module.trained_parameters.values(), trainer.callback_metrics["val/loss"]]
    for without, cached in zip(*trained.values(), strict=True):
        assert torch.equal(without, cached)


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_32bit"])
def test_one_buffer_for_the_optimizer_changes_no_bit(tiny_base, tmp_path, optimizer):
    saved = {}
    for flat in (True, False):
        run = {"optimizer": optimizer, "max_grad_norm": 0.0, "weight_decay": 0.1}
        run |= {"kind": PlainModule, "fused_head": True, "fused_lora": True}
        module, data = make_run(tiny_base, flat_optimizer=flat, **run)
        trainer = make_trainer(tmp_path, steps=3)
        trainer.fit(module, data)
        module.zero_grad()  # as a user may; it must not cut the ties to the buffer
        (groups,) = trainer.optimizers[0].param_groups
        assert (len(groups["params"]) == 1) == flat
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        saved[flat] = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert saved[True].keys() == saved[False].keys()
    for name, tensor in saved[True].items():
        assert torch.equal(tensor, saved[False][name])


def test_a_checkpoint_holds_the_adapter_alone_and_loads_again(tiny_base, tmp_path):
    module, data = make_run(tiny_base)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, data)
    path = tmp_path / "here.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert saved.keys() == module.trained_parameters.keys()

    other, data = make_run(tiny_base, seed=1)
    make_trainer(tmp_path).validate(other, data, ckpt_path=path, verbose=False, weights_only=True)
    for name, parameter in module.trained_parameters.items():
        assert torch.equal(parameter, other.trained_parameters[name])


def test_a_checkpoint_of_another_rank_is_refused(tiny_base, tmp_path):
    module, data = make_run(tiny_base)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "r4.ckpt")
    other, data = make_run(tiny_base, lora=Lora(r=8, alpha=8))
    with pytest.raises(InputError, match=r"model\.lora\.r: was 4, is now 8"):
        make_trainer(tmp_path).validate(
            other, data, ckpt_path=tmp_path / "r4.ckpt", verbose=False, weights_only=True
        )


def test_missing_and_unknown_tensors_are_both_named():
    here = {"a": torch.zeros(2), "b": torch.zeros(1)}
    there = {"b": torch.zeros(1), "c": torch.zeros(3)}
    with pytest.raises(InputError, match=r"2 tensors.*a: here \[2\], there missing; c: here miss"):
        require_same_shapes(here, there, "the file")


def test_the_adapter_starts_the_same_whatever_the_global_seed(tiny_base, tmp_path):
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module, data = make_run(tiny_base)
        trainer = make_trainer(tmp_path, steps=1)
        trainer.fit(module, data)
        starts.append(trainer.callback_metrics["train/loss"].item())
    assert starts[0] == starts[1]


class Poison(pl.Callback):
    """Puts a NaN into one weight of the adapter before the third step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 2:
            weights = next(iter(pl_module.trained_parameters.values()))
            weights.data[0, 0] = float("nan")


def test_a_nan_stops_before_the_optimizer(tiny_base, tmp_path):
    module, data = make_run(tiny_base)
    trainer = make_trainer(tmp_path, steps=4, callbacks=[Poison()])
    with pytest.raises(NonFiniteError, match="optimizer step 2: loss nan"):
        trainer.fit(module, data)
    assert trainer.global_step == 2


def test_a_step_is_logged_once_with_all_its_figures(tiny_base, tmp_path):
    module, data = make_run(tiny_base)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, data)
    metrics = trainer.callback_metrics
    for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "peak_memory_gib"):
        assert metrics[f"train/{name}"] > 0, name
    assert metrics["train/supervised_tokens_per_second"] < metrics["train/tokens_per_second"]


class Ticking(SFTDataModule):
    """Its clock moves in the loader, in a step, and in what callbacks do, by other amounts."""

    now = 0.0

    def train_dataloader(self):
        loader = super().train_dataloader()
        read = loader.dataset.make

        def make(examples):
            self.now += 3.0
            return read(examples)

        loader.dataset.make = make
        return loader


class Tick(pl.Callback):
    """Lets time pass in steps, saves and evaluations."""

    def __init__(self, data) -> None:
        self.data, self.figures = data, []

    def tick(self, seconds: float) -> None:
        self.data.now += seconds

    def on_fit_start(self, trainer, pl_module) -> None:
        pl_module._collect_gradients = self._in_step(pl_module._collect_gradients)

    def _in_step(self, collect):
        def collected():
            self.tick(2.0)
            return collect()

        return collected

    def on_train_start(self, trainer, pl_module) -> None:
        self.tick(100.0)

    def on_validation_end(self, trainer, pl_module) -> None:
        self.tick(1000.0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        tokens = sum(part["num_tokens"] for part in batch)
        self.figures.append((tokens, dict(trainer.callback_metrics)))
        self.tick(10000.0)


def test_the_rate_counts_the_wait_for_the_loader_and_nothing_between_steps(
    tiny_base, tmp_path, monkeypatch
):
    module, _ = make_run(tiny_base)
    data = Ticking(WordProblems(train_rows=64), val_rows=8, max_length=600)
    ticks = Tick(data)
    clock = SimpleNamespace(perf_counter=lambda: data.now)
    monkeypatch.setattr("lit_sft.model.figures.time", clock)
    make_trainer(tmp_path, steps=3, val_check_interval=2, callbacks=[ticks]).fit(module, data)
    assert len(ticks.figures) == 3
    for tokens, figures in ticks.figures:
        assert figures["train/loader_wait_seconds"] == 3.0
        assert figures["train/tokens_per_second"] == pytest.approx(tokens / 5.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"warmup_ratio": 1.0}, r"warmup_ratio must be in \[0, 1\)"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must not be negative"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SFTModule("owner/name", **arguments)


@pytest.mark.parametrize(
    "lora", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}, {"target_modules": ()}], ids=str
)
def test_impossible_adapters_are_refused(lora):
    with pytest.raises(InputError, match="lora"):
        Lora(**lora)


def test_an_unknown_target_and_a_missing_base_are_named(tiny_base, tmp_path):
    with pytest.raises(InputError, match=r"no linear layer q_prj; it has .*q_proj"):
        SFTModule(str(tiny_base), lora=Lora(target_modules=("q_prj",))).check_base()
    with pytest.raises(InputError, match="there is no folder"):
        SFTModule(str(tmp_path / "nothing")).check_base()
    with pytest.raises(InputError, match=r"has no config\.json; it holds nothing"):
        SFTModule(str(tmp_path)).check_base()


def test_half_precision_without_bf16_is_refused(tiny_base, tmp_path):
    module, data = make_run(tiny_base)
    with pytest.raises(InputError, match="precision must be"):
        make_trainer(tmp_path, precision="16-true").fit(module, data)


def test_a_schedule_needs_an_end(tiny_base, tmp_path):
    module, data = make_run(tiny_base)
    with pytest.raises(InputError, match="needs an end"):
        make_trainer(tmp_path, steps=-1, max_epochs=-1).fit(module, data)


def test_a_model_that_cannot_pack_pads_and_refuses_packed_windows_of_others(tmp_path):
    """A data module that knows no other way must not be trained on silently."""
    tokenizer = build_tiny_tokenizer()
    build("LFM2", len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    module, data = make_run(tmp_path / "base")
    make_trainer(tmp_path).fit(module, data)
    assert data.batching == "padded"
    packed = DataLoader([[pack_batch([data.prepared["train"].encoded[0]])]], batch_size=None)
    with pytest.raises(InputError, match="packs rows, which this model cannot keep apart"):
        make_trainer(tmp_path).fit(module, packed)


def test_graphs_find_gradients_to_add_to_in_every_step(tiny_base, tmp_path):
    """Lightning sets all to None before the first one, and before each validation."""
    module, data = make_run(tiny_base)
    seen = []

    class Look(pl.Callback):
        def on_before_backward(self, trainer, pl_module, *args):
            flat = pl_module._flat
            ends = flat.gradient.data_ptr() + flat.gradient.nbytes
            where = [p.grad is not None and p.grad.data_ptr() for p in flat.members]
            seen.append(all(flat.gradient.data_ptr() <= x < ends for x in where))

    validate = {"limit_val_batches": 1, "val_check_interval": 1}
    make_trainer(tmp_path, steps=3, callbacks=[Look()], **validate).fit(module, data)
    assert seen
    assert all(seen)

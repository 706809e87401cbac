"""As a library: the same trainer as the command line's, and a data module that is not ours."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import wandb
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

import lit_sft
from lit_sft.data.batching import pack_batch
from lit_sft.data.protocol import RunData
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.data.windows import WindowLoader, WindowSampler
from lit_sft.errors import InputError
from lit_sft.run.folder import RunFolder
from lit_sft.run.lock import hold_folder
from lit_sft.types import Window


class Sums(pl.LightningDataModule):
    """Sums of two digits, with no other base class than Lightning's."""

    def __init__(self, base: Path, rows: int = 24) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(str(base))
        self.rows = rows

    def make_window(self, numbers: list[int]) -> Window:
        chats = [
            [
                {"role": "user", "content": f"{n % 10} + {n // 10}?"},
                {"role": "assistant", "content": str(n % 10 + n // 10)},
            ]
            for n in numbers
        ]
        return [pack_batch([lit_sft.encode_chat(self.tokenizer, chat) for chat in chats])]

    def train_dataloader(self) -> DataLoader[Window]:
        epoch, first = divmod(self.trainer.global_step, self.rows // 4)
        sampler = WindowSampler(self.rows, 4, seed=0, first_window=first)
        sampler.set_epoch(epoch)
        return WindowLoader(range(self.rows), batch_sampler=sampler, collate_fn=self.make_window)

    def val_dataloader(self) -> DataLoader[Window]:
        return DataLoader(range(90, 98), batch_size=4, collate_fn=self.make_window)

    def describe_run(self) -> dict[str, object]:
        return {"data.rows": self.rows}

    def describe_data(self) -> dict[str, object]:
        return {"train": {"rows": self.rows}}


def make_module(base: Path) -> lit_sft.SFTModule:
    lora = lit_sft.Lora(r=4, alpha=8, dropout=0.1)
    return lit_sft.SFTModule(str(base), learning_rate=1e-2, lora=lora, max_new_tokens=2)


def make_trainer(root: Path, **options: object) -> pl.Trainer:
    options = {"max_steps": 6, "accelerator": "cpu", "precision": "32-true"} | options
    return lit_sft.make_trainer(every_n_steps=2, default_root_dir=root, **options)


def read_weights(root: Path) -> bytes:
    return (root / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_data_module_of_one_s_own_trains_is_evaluated_saved_and_resumed(tiny_base, tmp_path):
    data: RunData = Sums(tiny_base)
    make_trainer(tmp_path / "whole").fit(make_module(tiny_base), data)

    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                raise RuntimeError("a power cut")

    root = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="a power cut"):
        make_trainer(root, callbacks=[Stop()]).fit(make_module(tiny_base), data)
    trainer, module = make_trainer(root), make_module(tiny_base)
    trainer.fit(module, data, ckpt_path=lit_sft.last_checkpoint(root))
    assert read_weights(root) == read_weights(tmp_path / "whole")
    assert (root / "adapter" / "chat_template.jinja").is_file()
    (figures,) = trainer.validate(module, data, verbose=False)
    assert figures["val/loss"] == pytest.approx(trainer.callback_metrics["val/loss"].item())
    with pytest.raises(InputError, match=r"data\.rows: was 24, is now 20"):
        make_trainer(root, max_steps=8).fit(
            make_module(tiny_base), Sums(tiny_base, 20), ckpt_path=lit_sft.last_checkpoint(root)
        )


def test_what_a_data_module_lacks_is_named_before_the_model_loads(tiny_base, tmp_path, capsys):
    class Mute(Sums):
        describe_data = property()

    with pytest.raises(InputError, match=r"tokenizer, describe_run.*Mute has no describe_data$"):
        make_trainer(tmp_path).fit(make_module(tiny_base), Mute(tiny_base))
    graded = make_trainer(tmp_path, callbacks=[lit_sft.GenerationEval()])
    with pytest.raises(InputError, match=r"GenerationEval takes .* Sums has no task, val_rows"):
        graded.fit(make_module(tiny_base), Sums(tiny_base))
    with pytest.raises(InputError, match=r"the trainer was given none"):
        make_trainer(tmp_path).fit(make_module(tiny_base), Sums(tiny_base).val_dataloader())
    assert "frozen" not in capsys.readouterr().out


def test_a_folder_has_one_run_at_a_time_and_loses_none(tiny_base, tmp_path):
    class TakeTwice(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.holder = json.loads(RunFolder(tmp_path).lock("fit").read_text())

    spy = TakeTwice()
    make_trainer(tmp_path, callbacks=[spy]).fit(make_module(tiny_base), Sums(tiny_base))
    assert spy.holder["pid"]
    with hold_folder(tmp_path):  # it was given back
        before = read_weights(tmp_path)
    with pytest.raises(InputError, match=r"holds a run already; .*lit_sft\.last_checkpoint"):
        make_trainer(tmp_path).fit(make_module(tiny_base), Sums(tiny_base))
    assert read_weights(tmp_path) == before
    assert RunFolder(tmp_path).lock("fit").read_text() == "", "it is given back after an error, too"


def test_one_trainer_may_go_on(tiny_base, tmp_path):
    trainer, module, data = make_trainer(tmp_path), make_module(tiny_base), Sums(tiny_base)
    trainer.fit(module, data)
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(module, data)
    assert trainer.global_step == 8


def test_an_evaluation_leaves_the_figures_of_training_alone(tiny_base, tmp_path):
    make_trainer(tmp_path).fit(make_module(tiny_base), Sums(tiny_base))
    before = RunFolder(tmp_path).metrics.read_bytes()
    make_trainer(tmp_path).validate(make_module(tiny_base), Sums(tiny_base), verbose=False)
    assert RunFolder(tmp_path).metrics.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gradient_clip_val": 1.0}, "model.max_grad_norm"),
        ({"precision": "16-mixed"}, "precision"),
        ({"strategy": "fsdp"}, "trainer.strategy must be auto, ddp or fsdp2, got fsdp;"),
        ({"strategy": "fsdp2"}, "over several devices, and here is one"),
        (
            {"strategy": ModelParallelStrategy(), "devices": 2},
            "trainer.strategy must be auto, ddp or fsdp2, got ModelParallelStrategy",
        ),
        ({"accelerator": "tpu"}, "torch_xla"),
    ],
)
def test_options_are_refused_as_by_the_command_line(tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        make_trainer(tmp_path, **options)


def test_an_unknown_option_is_a_type_error(tmp_path):
    with pytest.raises(TypeError, match="no option max_stepz"):
        make_trainer(tmp_path, max_stepz=3)


def test_another_module_is_refused(tmp_path, tiny_base):
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(InputError, match=r"a run trains lit_sft\.SFTModule, got BoringModel"):
        make_trainer(tmp_path).fit(BoringModel(), Sums(tiny_base))


@pytest.fixture
def ends_wandb():
    """Its service would live on, and every run of a later test of this process would use it."""
    yield
    wandb.teardown()


@pytest.mark.usefixtures("ends_wandb")
def test_w_and_b_goes_on_in_the_run_s_folder(tmp_path):
    first, other = lit_sft.WandbRun(offline=True), lit_sft.WandbRun(offline=True)
    make_trainer(tmp_path, logger=first)
    run_id = first.experiment.id
    first.experiment.finish()
    make_trainer(tmp_path, logger=other)
    assert other.experiment.id == run_id
    other.experiment.finish()
    assert RunFolder(tmp_path).wandb_id.read_text() == run_id

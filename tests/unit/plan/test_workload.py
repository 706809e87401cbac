"""What a run has to do is what Lightning and the loaders make of it."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from lit_sft import SFTDataModule, SFTModule, WordProblems
from lit_sft.plan.dry_run import attach
from lit_sft.plan.workload import (
    Training,
    cut_window,
    find_longest,
    plan_training,
    plan_validations,
)


@pytest.fixture
def make(tiny_base):
    def build(batching="padding_free", **options):
        data = SFTDataModule(
            WordProblems(train_rows=50),
            batch_size=2,
            accumulate_grad_batches=4,
            max_length=512,
            batching=batching,
            val_rows=10,
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            **options,
        )
        attach(trainer, SFTModule(str(tiny_base)), data)
        return data, trainer

    return build


@pytest.mark.parametrize("batching", ["padding_free", "padded"])
def test_steps_and_passes_are_those_of_the_loader(make, batching):
    data, trainer = make(batching, max_epochs=2, max_steps=-1)
    planned = plan_training(data, trainer)
    windows = list(data.train_dataloader())
    assert planned.steps == 2 * len(windows) == 2 * 7
    tokens = sum(batch["num_tokens"] for window in windows for batch in window)
    assert planned.tokens == pytest.approx(tokens / 7)
    supervised = sum(batch["num_supervised"] for window in windows for batch in window)
    assert planned.supervised == pytest.approx(supervised / 7)
    first = [batch["input_ids"].numel() for window in windows for batch in window]
    size = max(planned.largest) * len(planned.largest)
    assert max(first) <= (sum(planned.largest) if batching == "padding_free" else size)
    cut = cut_window([5] * 8, data)
    assert cut == ([[5] * 8] if batching == "padding_free" else [[5, 5]] * 4)


def test_the_longest_rows_are_found(make):
    data, _ = make(max_steps=3)
    rows = data.prepared["train"].encoded
    longest = find_longest(rows, 4)
    assert [rows.lengths()[i] for i in longest] == sorted(rows.lengths(), reverse=True)[:4]
    data.train_on(longest)
    (window,) = list(data.train_dataloader())
    assert sum(batch["num_tokens"] for batch in window) == sum(sorted(rows.lengths())[-4:])


@pytest.mark.parametrize(
    ("limits", "steps", "times"),
    [
        ({}, 14, 2),
        ({"val_check_interval": 3}, 14, 4),
        ({"val_check_interval": 3}, 10, 3),
        ({"val_check_interval": 0.5}, 14, 4),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, 14, 3),
        ({"check_val_every_n_epoch": 2}, 28, 2),
        ({"limit_val_batches": 0}, 14, 0),
    ],
)
def test_validations_are_counted_as_lightning_counts(make, limits, steps, times):
    data, trainer = make(max_steps=steps, max_epochs=-1, **limits)
    training = Training(steps, 7, 1.0, 1.0, [[1]], [1], 1)
    assert plan_validations(data, trainer, training).times == times
    seen = SimpleNamespace(count=0)

    class Counting(pl.Callback):
        def on_validation_start(self, *args):
            seen.count += 1

    class Nothing(pl.LightningModule):
        automatic_optimization = False

        def training_step(self, *args):
            self.optimizers().step()

        def validation_step(self, *args):
            pass

        def configure_optimizers(self):
            import torch

            return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)

    counting = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_steps=steps,
        max_epochs=-1,
        callbacks=[Counting()],
        **limits,
    )
    counting.fit(Nothing(), list(range(7)), list(range(2)))
    assert seen.count == times

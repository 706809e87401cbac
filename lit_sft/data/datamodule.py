"""The Lightning shell around encoding and batching."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from lit_sft.data.duplicates import format_repeats
from lit_sft.data.ledger import format_ledgers
from lit_sft.data.prompts import make_prompts
from lit_sft.data.rows import ChatRows
from lit_sft.data.tokenizer import hash_template
from lit_sft.data.windows import (
    PackedWindows,
    PaddedWindows,
    WindowLoader,
    WindowSampler,
    leave_signals_to_the_trainer,
)
from lit_sft.errors import require
from lit_sft.types import Split

PREDICTED_ROWS = 256
"""Prompts handed out at once; generation makes its own batches of them."""


class SFTDataModule(ChatRows, pl.LightningDataModule):
    """Chat rows, encoded once with the loss mask proven, as `lit_sft.types.Window`s.

    The arguments are those of `lit_sft.data.rows.ChatRows`.
    """

    _announced: frozenset[Split] = frozenset()

    def find_base_model(self) -> str | None:
        """Return the base model of the trainer's module, or None without one."""
        return getattr(self.trainer and self.trainer.lightning_module, "base_model", None)

    def prepare_data(self) -> None:
        """Encode on one process of a node, so that the others find the rows in the cache."""
        self._load_splits(self._stage_of_trainer())

    def setup(self, stage: str) -> None:
        """Load the splits that a stage needs, and print their ledger once."""
        self._load_splits(stage)
        unseen = [ledger for split, ledger in self.ledgers.items() if split not in self._announced]
        if unseen:
            lines = [format_ledgers(unseen)]
            lines += [self.overlength.pop(x.split) for x in unseen if x.split in self.overlength]
            if "train" in {ledger.split for ledger in unseen}:
                lines += filter(None, [format_repeats(self.repeats, self.dedup)])
            self._announced |= frozenset(self.ledgers)
            _print(lines)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled windows; the last one may be short, and no row is dropped."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader | list:
        """Return the held-out rows in order, or no loader at all with `val_rows=0`."""
        return self._loader("val") if "val" in self._encoded else []

    def test_dataloader(self) -> DataLoader:
        """Return the rows of the test split in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the prompts of the test split, as lists of `lit_sft.types.Prompt`."""
        require(
            self.trainer is None or self.trainer.world_size == 1,
            "predict runs on one device; set trainer.devices=1",
        )
        prompts: Any = make_prompts(self.task, "test", self.tokenizer, self.val_rows)
        return DataLoader(prompts, batch_size=PREDICTED_ROWS, collate_fn=list)

    def describe_run(self) -> dict[str, Any]:
        """Return what decides which rows an optimizer step sees."""
        return {
            "data.rows": self.fingerprints.get("train"),
            "data.chat_template": hash_template(self.tokenizer),
            "data.batch_size": self.batch_size,
            "data.accumulate_grad_batches": self.accumulate_grad_batches,
            "data.seed": self.seed,
            "data.dedup": self.dedup,
        }

    def name_rows(self, epoch: int, window: int) -> list[str]:
        """Return the names of the rows of a training window, over all ranks, as in any error.

        Args:
            epoch: From 0.
            window: Its number within the epoch, from 0.
        """
        encoded = self._encoded["train"]
        sampler = WindowSampler(
            len(encoded), self._window_rows("train"), self.seed, first_window=window
        )
        sampler.set_epoch(epoch)
        names = [name for name, _ in self.remove_repeats(self.read("train"), self.repeats)]
        kept = sorted(set(range(len(names))) - set(encoded.dropped.tolist()))
        return [names[kept[row]] for row in next(iter(sampler))]

    def _load_splits(self, stage: str) -> None:
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()
        }  # fmt: skip
        self.load_splits(split for split in needed[stage] if split != "val" or self.val_rows)

    def _loader(self, split: Split) -> DataLoader:
        training = split == "train"
        rows, trainer = self._encoded[split], self.trainer
        sampler = WindowSampler(
            num_rows=len(rows),
            window_rows=self._window_rows(split),
            seed=self.seed if training else None,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if training and trainer:
            # Workers read ahead at once, before Lightning sets the epoch of a resumed run.
            limit = trainer.limit_train_batches
            steps = int(len(sampler) * limit) if isinstance(limit, float) else limit
            epoch, sampler.first_window = divmod(trainer.global_step, min(steps, len(sampler)) or 1)
            sampler.set_epoch(epoch)
        windows = (
            PackedWindows(rows, self.max_tokens_per_pass)
            if self.batching == "padding_free"
            else PaddedWindows(rows, self.batch_size, self.tokenizer.pad_token_id)
        )
        return WindowLoader(
            windows,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_the_trainer,
            pin_memory=torch.cuda.is_available(),
        )

    def _window_rows(self, split: Split) -> int:
        """Return the rows of a whole window, over all ranks."""
        rows = self.batch_size * (self.trainer.world_size if self.trainer else 1)
        return rows * (self.accumulate_grad_batches if split == "train" else 1)

    def _stage_of_trainer(self) -> str:
        stage = self.trainer and self.trainer.state.fn
        return stage.value if stage else "fit"


@rank_zero_only
def _print(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)

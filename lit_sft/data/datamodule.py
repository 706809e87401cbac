"""The Lightning shell around encoding and batching."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Subset

from lit_sft.data.duplicates import format_repeats
from lit_sft.data.ledger import format_ledgers
from lit_sft.data.prepare import ChatRows
from lit_sft.data.prompts import make_prompts
from lit_sft.data.sources import format_sources
from lit_sft.data.streaming import StreamedRows, StreamedWindows, StreamLoader
from lit_sft.data.tokenizer import hash_template
from lit_sft.data.vocabulary import (
    require_chat_embeddings,
    require_embeddings,
    require_own_vocabulary,
)
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

    The arguments are those of `lit_sft.data.prepare.ChatRows`.
    """

    _announced: frozenset[Split] = frozenset()

    def find_base_model(self) -> str | None:
        """Return the base model of the trainer's module, or None without one."""
        return getattr(self.trainer and self.trainer.lightning_module, "base_model", None)

    def prepare_data(self) -> None:
        """Encode on one process of a node, so that the others find the rows in the cache.

        Raises:
            InputError: If the tokenizer is not the base's, or has tokens that the base has not.
        """
        base, rows = self.find_base_model(), self._count_embeddings()
        if base and self.tokenizer_path:
            require_own_vocabulary(self.tokenizer, self.tokenizer_path, base)
        if rows:
            require_chat_embeddings(self.tokenizer, rows)
        self._load_splits(self._stage_of_trainer())

    def setup(self, stage: str) -> None:
        """Load the splits that a stage needs, and print their ledger once."""
        self._load_splits(stage)
        unseen = [split for split in self.ledgers if split not in self._announced]
        if unseen:
            self._announced |= frozenset(unseen)
            _print(self.task.describe(), *self._describe(unseen))

    def train_dataloader(self) -> DataLoader:
        """Return shuffled windows; the last one may be short, and no row is dropped."""
        return self._loader("train", self._rows_to_train_on())

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the held-out rows in order, by source; no loader at all with `val_rows=0`."""
        return self._loaders_by_source("val") if "val" in self._encoded else []

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the rows of the test split in order, by source."""
        return self._loaders_by_source("test")

    def predict_dataloader(self) -> DataLoader:
        """Return the prompts of the test split, as lists of `lit_sft.types.Prompt`."""
        require(
            self.trainer is None or self.trainer.world_size == 1,
            "predict runs on one device; set trainer.devices=1",
        )
        prompts: Any = make_prompts(self.task, "test", self.tokenizer, self.val_rows)
        if rows := self._count_embeddings():
            for prompt in prompts:
                where = f"test row {prompt.row} holds it"
                require_embeddings(self.tokenizer, prompt.input_ids, rows, where)
        return DataLoader(prompts, batch_size=PREDICTED_ROWS, collate_fn=list)

    def describe_run(self) -> dict[str, Any]:
        """Return what decides which rows an optimizer step sees, and how they lie in it.

        The layout decides what dropout draws for each token. What a run has not loaded, such as the
        rows of `train` in a test, is left out.
        """
        run = {
            "data.chat_template": hash_template(self.tokenizer),
            "data.batch_size": self.batch_size,
            "data.accumulate_grad_batches": self.accumulate_grad_batches,
            "data.batching": self.batching,
            "data.seed": self.seed,
            "data.dedup": self.dedup,
        }
        if self.batching == "padding_free":
            run["data.max_tokens_per_pass"] = self.max_tokens_per_pass
        if "train" in self.fingerprints:
            windows = -(-len(self._rows_to_train_on()) // self._window_rows("train"))
            run["data.rows"] = self.fingerprints["train"]
            steps = self._steps_per_epoch(windows)  # whole epochs stay whole if batches change
            run["trainer.limit_train_batches"] = steps if steps < windows else "all"
        if self.streamed is not None:  # whose fingerprint is of a sample
            run |= {"data.max_length": self.max_length, "data.on_overlength": self.on_overlength}
            run |= {"data.contents": self.contents} if self.contents else {}
            if self.on_marker == "drop":
                run["data.on_marker"] = "drop"
        return run

    def describe_data(self) -> dict[str, Any]:
        """Return the ledger of each split that is loaded, as plain values."""
        return {split: ledger.as_dict() for split, ledger in self.ledgers.items()}

    def request_of(self, split: Split) -> str | None:
        """Return a hash of the rows of a split before they were encoded; None if not loaded."""
        return self.requests.get(split)

    def source_names(self, split: Split) -> list[str]:
        """Return the names of a mixture's sources, in the order of the loaders; else none."""
        return list(self.sources.get(split, {}))

    def name_rows(self, epoch: int, window: int) -> list[str]:
        """Return the names of the rows of a training window, over all ranks, as in any error.

        Args:
            epoch: From 0.
            window: Its number within the epoch, from 0.
        """
        rows = self._rows_to_train_on()
        sampler = WindowSampler(
            len(rows), self._window_rows("train"), self.seed, first_window=window
        )
        sampler.set_epoch(epoch)
        numbers = next(iter(sampler))
        if self.streamed is not None:
            return [self.streamed[number][0] for number in numbers]
        names = [name for name, _ in self.remove_repeats(self.read("train"), self.repeats)]
        kept = sorted(set(range(len(names))) - set(rows.dropped.tolist()))
        return [names[kept[number]] for number in numbers]

    def _rows_to_train_on(self) -> Any:
        if self.streamed is None:
            return self._encoded["train"]
        return StreamedRows(
            *(self.task, self.streamed, self.tokenizer),
            *(self.max_length, self.on_overlength, self.on_lost_field),
            num_embeddings=self._count_embeddings(),
            on_marker=self.on_marker,
        )

    def _count_embeddings(self) -> int | None:
        """Return the rows of the base's embedding, if the trainer's module tells."""
        module: Any = self.trainer and self.trainer.lightning_module
        return module.count_embeddings() if hasattr(module, "count_embeddings") else None

    def _load_splits(self, stage: str) -> None:
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()
        }  # fmt: skip
        self.load_splits(split for split in needed[stage] if split != "val" or self.val_rows)
        if rows := self._count_embeddings():
            for split, encoded in self._encoded.items():
                require_embeddings(self.tokenizer, [encoded.input_ids.max()], rows, f"in {split}")

    def _describe(self, splits: list[Split]) -> list[str]:
        texts = [format_ledgers([self.ledgers[split] for split in splits])]
        texts += [self.overlength[split] for split in splits if split in self.overlength]
        texts += [self.lost_fields[split] for split in splits if split in self.lost_fields]
        texts += [self.markers[split] for split in splits if split in self.markers]
        if "train" in splits:
            texts.append(format_repeats(self.repeats, self.dedup))
        if self.streamed is not None and "train" in splits:
            rows, sample = len(self.streamed), self.ledgers["train"].rows
            texts.append(
                f"train is streamed: of its {rows:,} rows, these are the figures of {sample:,}"
                + ("" if self.contents else ", which alone are compared when the run is resumed")
            )
        for split in splits:
            if groups := self.sources.get(split):
                texts.append(format_sources(split, self._encoded[split], groups))
        return texts

    def _loaders_by_source(self, split: Split) -> DataLoader | list[DataLoader]:
        """Return one loader, or, for a mixture, one for each of its sources."""
        rows: Any = self._encoded[split]
        if groups := self.sources.get(split):
            return [self._loader(split, Subset(rows, group.tolist())) for group in groups.values()]
        return self._loader(split, rows)

    def _loader(self, split: Split, rows: Any) -> DataLoader:
        training, trainer = split == "train", self.trainer
        sampler = WindowSampler(
            num_rows=len(rows),
            window_rows=self._window_rows(split),
            seed=self.seed if training else None,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        if training and trainer:
            # Workers read ahead at once, before Lightning sets the epoch of a resumed run.
            steps = self._steps_per_epoch(len(sampler)) or 1
            epoch, sampler.first_window = divmod(trainer.global_step, steps)
            sampler.set_epoch(epoch)
        windows: Any = (
            PackedWindows(rows, self.max_tokens_per_pass)
            if self.batching == "padding_free"
            else PaddedWindows(rows, self.batch_size, self.tokenizer.pad_token_id)
        )
        loader = WindowLoader
        if isinstance(rows, StreamedRows):
            loader, windows = StreamLoader, StreamedWindows(rows, windows)
        return loader(
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

    def _steps_per_epoch(self, windows: int) -> int:
        """Return how many of its windows an epoch takes, as Lightning counts."""
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        return min(int(windows * limit) if isinstance(limit, float) else limit, windows)

    def _stage_of_trainer(self) -> str:
        stage = self.trainer and self.trainer.state.fn
        return stage.value if stage else "fit"


@rank_zero_only
def _print(*texts: str) -> None:
    print("\n".join(filter(None, texts)), flush=True)

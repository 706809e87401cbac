"""The Lightning shell around encoding and batching."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Subset

from lit_sft.data.encoded_rows import EncodedRows
from lit_sft.data.ledger import make_ledger
from lit_sft.data.options import DataOptions
from lit_sft.data.prepare import PreparedSplit, describe_splits, prepare_splits
from lit_sft.data.prompts import find_prompts
from lit_sft.data.streaming import StreamedRows, make_loader
from lit_sft.data.tokenizer import hash_template
from lit_sft.data.vocabulary import (
    require_chat_embeddings,
    require_embeddings,
    require_own_vocabulary,
)
from lit_sft.data.windows import (
    PackedWindows,
    PaddedWindows,
    PromptLists,
    WindowSampler,
    list_lengths,
)
from lit_sft.files import remove_leftovers
from lit_sft.paths import default_cache_dir
from lit_sft.tasks.base import list_chosen_graders
from lit_sft.types import Example, Prompt, Split, Window

PREDICTED_ROWS = 256
"""Prompts handed out to a rank at once; generation makes its own batches of them."""


class SFTDataModule(DataOptions, pl.LightningDataModule):
    """Chat rows, encoded once with the loss mask proven, as `lit_sft.types.Window`s.

    The arguments are those of `lit_sft.data.options.DataOptions`.
    """

    _announced: frozenset[Split] = frozenset()
    _chosen: "Subset[Example] | None" = None

    @cached_property
    def prepared(self) -> dict[Split, PreparedSplit]:
        """The splits that are loaded."""
        return {}

    def find_base_model(self) -> str | None:
        """Return the base model of the trainer's module, or None without one."""
        return getattr(self.trainer and self.trainer.lightning_module, "base_model", None)

    def prepare_data(self) -> None:
        """Encode on one process of a node, so that the others find the rows in the cache.

        What killed runs have left in the cache is removed before.

        Raises:
            InputError: If the tokenizer is not the base's, or has tokens that the base has not.
        """
        for cache in {self.cache_dir, default_cache_dir()}:  # tasks have folders of their own there
            for folder in (cache, *cache.glob("*/")):
                remove_leftovers(folder)
        base, rows = self.find_base_model(), self._count_embeddings()
        if base and self.tokenizer_path:
            require_own_vocabulary(self.tokenizer, self.tokenizer_path, base)
        if rows:
            require_chat_embeddings(self.tokenizer, rows)
        self._load_splits(self._stage_of_trainer())

    def setup(self, stage: str) -> None:
        """Load the splits that a stage needs, and print their ledger once."""
        self._load_splits(stage)
        unseen = [split for split in self.prepared if split not in self._announced]
        if unseen:
            self._announced |= frozenset(unseen)
            splits = {split: self.prepared[split] for split in unseen}
            _print(self.task.describe(), *describe_splits(splits, self.dedup))

    def train_dataloader(self) -> DataLoader[Window]:
        """Return shuffled windows; the last one may be short, and no row is dropped."""
        return self._loader("train", self._chosen or self._rows_to_train_on())

    def val_dataloader(self) -> DataLoader[Window] | list[DataLoader[Window]]:
        """Return the held-out rows in order, by source; no loader at all with `val_rows=0`."""
        return self._loaders_by_source("val") if "val" in self.prepared else []

    def test_dataloader(self) -> DataLoader[Window] | list[DataLoader[Window]]:
        """Return the rows of the test split in order, by source."""
        return self._loaders_by_source("test")

    def predict_dataloader(self) -> DataLoader[list[Prompt]]:
        """Return this rank's prompts of `data.predict_on`, as lists of `lit_sft.types.Prompt`.

        All ranks have as many lists; the last may be empty on some.
        """
        prompts = find_prompts(self.task, self.predict_on, self.tokenizer, self.val_rows)
        if rows := self._count_embeddings():
            for prompt in prompts:
                where = f"row {prompt.row} of {self.predict_on} holds it"
                require_embeddings(self.tokenizer, prompt.input_ids, rows, where)
        rank, ranks = self._place()
        sampler = WindowSampler(len(prompts), PREDICTED_ROWS * ranks, None, rank, ranks)
        return DataLoader(PromptLists(prompts), batch_size=None, sampler=sampler)

    def describe_run(self) -> dict[str, object]:
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
        if grader := list_chosen_graders(self.task):
            run["data.grader"] = grader
        if self.batching == "padding_free":
            run["data.max_tokens_per_pass"] = self.max_tokens_per_pass
        if train := self.prepared.get("train"):
            windows = -(-len(self._rows_to_train_on()) // self._window_rows())
            run["data.rows"] = train.fingerprint
            steps = self._steps_per_epoch(windows)  # whole epochs stay whole if batches change
            run["trainer.limit_train_batches"] = steps if steps < windows else "all"
        if train and train.stream:  # whose fingerprint is of a sample
            run["data.max_length"] = self.max_length
            run["data.on_overlength"] = self.policy.on_overlength
            run |= {"data.contents": train.stream.contents} if train.stream.contents else {}
            run |= {f"data.{name}": x for name, x in self.policy.describe_choices().items()}
        return run

    def name_rows(self, epoch: int, window: int) -> list[str]:
        """Return the names of the rows of a training window, over all ranks, as in any error.

        Args:
            epoch: From 0.
            window: Its number within the epoch, from 0.
        """
        rows = self._rows_to_train_on()
        sampler = WindowSampler(len(rows), self._window_rows(), self.seed, first_window=window)
        sampler.set_epoch(epoch)
        numbers, train = next(iter(sampler)), self.prepared["train"]
        if train.stream:
            return [train.stream.rows[number][0] for number in numbers]
        kept = train.list_kept()
        return [kept[number] for number in numbers]

    def describe_data(self) -> dict[str, dict[str, object]]:
        """Return the figures of the loaded splits, as plain values.

        Those of `train` have `repeats`, too: its rows whose question stands in each split.
        """
        figures: dict[str, dict[str, object]] = {
            split: prepared.ledger.as_dict() for split, prepared in self.prepared.items()
        }
        for split, prepared in self.prepared.items():
            if prepared.repeats:
                counts = {other: len(found) for other, found in prepared.repeats.items()}
                figures[split]["repeats"] = counts
        return figures

    def source_names(self, split: Split) -> list[str]:
        """Return the sources of a mixture, as its loaders are ordered; empty for one source."""
        return list(self.prepared[split].sources) if split in self.prepared else []

    def request_of(self, split: Split) -> str | None:
        """Return the hash of what a split was asked to be, or None if it is not loaded."""
        return self.prepared[split].request if split in self.prepared else None

    def pad_rows(self) -> float:
        """Pad rows from now on, as `batching="padded"` does; return the share of padding in train.

        The ledgers are taken anew.
        """
        self.batching = "padded"
        for split, was in self.prepared.items():
            ledger = make_ledger(split, was.encoded, self.padded_rows, was.ledger.duplicates)
            self.prepared[split] = replace(was, ledger=ledger)
        train = self.prepared.get("train")
        return train.ledger.padding_share if train else 0.0

    def widen_passes(self, tokens: int) -> None:
        """Run up to so many packed tokens at once from now on."""
        self.max_tokens_per_pass = tokens

    def train_on(self, numbers: Sequence[int]) -> None:
        """Hand out these of the loaded rows of `train` alone from now on, by their positions."""
        rows: Any = self.prepared["train"].encoded
        self._chosen = Subset(rows, numbers)

    def load_splits(self, splits: Iterable[Split]) -> None:
        """Prepare splits, unless they are already.

        Raises:
            InputError: As `lit_sft.data.prepare.prepare_splits`.
        """
        missing = [split for split in splits if split not in self.prepared]
        self.prepared |= prepare_splits(self, missing)

    def _rows_to_train_on(self) -> EncodedRows | StreamedRows:
        train = self.prepared["train"]
        if train.stream is None:
            return train.encoded
        rows, embeddings = train.stream.rows, self._count_embeddings()
        return StreamedRows(self.task, rows, self.tokenizer, self.policy, embeddings)

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
            for split, prepared in self.prepared.items():
                highest = prepared.encoded.input_ids.max()
                require_embeddings(self.tokenizer, [highest], rows, f"in {split}")

    def _loaders_by_source(self, split: Split) -> DataLoader[Window] | list[DataLoader[Window]]:
        """Return one loader, or, for a mixture, one for each of its sources."""
        rows: Any = self.prepared[split].encoded
        if groups := self.prepared[split].sources:
            return [self._loader(split, Subset(rows, group.tolist())) for group in groups.values()]
        return self._loader(split, rows)

    def _loader(self, split: Split, rows: Any) -> DataLoader[Window]:
        training, trainer = split == "train", self.trainer
        rank, ranks = self._place()
        sampler = WindowSampler(
            num_rows=len(rows),
            window_rows=self._window_rows(),
            seed=self.seed if training else None,
            rank=rank,
            world_size=ranks,
            lengths=list_lengths(rows) if ranks > 1 else None,
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
        return make_loader(rows, windows, sampler, self.num_workers)

    def _window_rows(self) -> int:
        """Return the rows of a whole window, over all ranks."""
        return self.batch_size * self._place()[1] * self.accumulate_grad_batches

    def _place(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

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

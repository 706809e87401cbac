"""The Lightning shell around encoding and batching."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerBase

from lit_sft.data.dataset import EncodedRows, load_or_encode
from lit_sft.data.ledger import Ledger, format_ledgers, make_ledger
from lit_sft.data.prompts import make_prompts
from lit_sft.data.sources import format_sources, group_by_source
from lit_sft.data.splits import read_conversations, read_split
from lit_sft.data.streaming import StreamedRows, StreamedWindows, StreamLoader, take_sample
from lit_sft.data.tokenizer import hash_template, load_tokenizer
from lit_sft.data.windows import PackedWindows, PaddedWindows, WindowLoader, WindowSampler
from lit_sft.errors import InputError, require
from lit_sft.paths import default_cache_dir
from lit_sft.tasks.base import ChatTask
from lit_sft.tasks.mixture import Mixture
from lit_sft.types import Split

PREDICTED_ROWS = 256
"""Prompts handed out at once; generation makes its own batches of them."""


class SFTDataModule(pl.LightningDataModule):
    """Chat rows, encoded once with the loss mask proven, as `lit_sft.types.Window`s.

    Args:
        task: Where the rows come from, and how a row reads as a conversation.
        tokenizer: A Hub id or folder; without one, the base model's own.
        batch_size: Rows a device sees at once.
        accumulate_grad_batches: Such batches an optimizer step, on every device.
        batching: `padding_free` lays the rows of an optimizer step end to end, in as few passes as
            `max_tokens_per_pass` allows; `padded` runs batches of `batch_size` padded rows. The
            gradient is the same.
        max_tokens_per_pass: What is run at once; `auto` is `batch_size` rows of `max_length`, the
            most that a padded batch can be.
        max_length: In tokens; a longer row is dropped and counted, never cut.
        val_rows: Rows held out of `train` for validation where the task has no `val` split; with
            one, how many of it to use. 0 trains without validation.
        streaming: Leave the rows of `train` where they are, and encode them when a step needs them,
            for data larger than memory: JSON lines, Parquet and the Hub stay on the disk. The
            ledger of `train` is then that of 1,024 rows; a row longer than `max_length` leaves a
            gap in its step. Worth two workers or more.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Decides the order of the training rows.
        cache_dir: Where encoded rows are kept between runs; without one, `LIT_SFT_CACHE` or
            `~/.cache/lit_sft`.
    """

    def __init__(
        self,
        task: ChatTask,
        tokenizer: str | None = None,
        batch_size: int = 4,
        accumulate_grad_batches: int = 4,
        batching: Literal["padding_free", "padded"] = "padding_free",
        max_tokens_per_pass: Literal["auto"] | int = "auto",
        max_length: int = 512,
        val_rows: int = 256,
        streaming: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        require(batch_size > 0, f"data.batch_size must be positive, got {batch_size}")
        require(
            accumulate_grad_batches > 0,
            f"data.accumulate_grad_batches must be positive, got {accumulate_grad_batches}",
        )
        require(max_length > 1, f"data.max_length must be at least 2 tokens, got {max_length}")
        require(val_rows >= 0, f"data.val_rows must not be negative, got {val_rows}")
        require(num_workers >= 0, f"data.num_workers must not be negative, got {num_workers}")
        self.task, self.batch_size, self.max_length = task, batch_size, max_length
        self.accumulate_grad_batches, self.batching = accumulate_grad_batches, batching
        self.max_tokens_per_pass = (
            batch_size * max_length if max_tokens_per_pass == "auto" else max_tokens_per_pass
        )
        require(
            self.max_tokens_per_pass >= max_length,
            f"data.max_tokens_per_pass={max_tokens_per_pass} cannot hold a row of "
            f"data.max_length={max_length} tokens; raise it to that at least",
        )
        self.val_rows, self.num_workers, self.seed = val_rows, num_workers, seed
        self.streaming = streaming
        self.tokenizer_path = tokenizer
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._encoded: dict[Split, EncodedRows] = {}
        self._streamed: StreamedRows | None = None
        self._announced: set[Split] = set()
        self.ledgers: dict[Split, Ledger] = {}
        self.fingerprints: dict[Split, str] = {}
        self.sources: dict[Split, dict[str, np.ndarray]] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at first use."""
        if self._tokenizer is None:
            path = self.tokenizer_path or self._base_model_of_trainer()
            self._tokenizer = load_tokenizer(path)
        return self._tokenizer

    def prepare_data(self) -> None:
        """Encode on one process of a node, so that the others find the rows in the cache."""
        self._load_splits(self._stage_of_trainer())

    def setup(self, stage: str) -> None:
        """Load the splits that a stage needs, and print their ledger once."""
        self._load_splits(stage)
        unseen = [split for split in self.ledgers if split not in self._announced]
        if unseen:
            self._announced |= set(unseen)
            _print(self.task.describe(), *self._describe(unseen))

    def train_dataloader(self) -> DataLoader:
        """Return shuffled windows; the last one may be short, and no row is dropped."""
        return self._loader("train", self._streamed or self._encoded["train"])

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
        return DataLoader(prompts, batch_size=PREDICTED_ROWS, collate_fn=list)

    def describe_run(self) -> dict[str, Any]:
        """Return what decides which rows an optimizer step sees."""
        return {
            "data.rows": self.fingerprints.get("train"),
            "data.chat_template": hash_template(self.tokenizer),
            "data.batch_size": self.batch_size,
            "data.accumulate_grad_batches": self.accumulate_grad_batches,
            "data.seed": self.seed,
        }

    def _load_splits(self, stage: str) -> None:
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()
        }  # fmt: skip
        for split in needed[stage]:
            if split in self.ledgers or (split == "val" and self.val_rows == 0):
                continue
            rows = read_split(self.task, split, self.val_rows)
            if self.streaming and split == "train":
                self._streamed = StreamedRows(self.task, rows, self.tokenizer, self.max_length)
                rows = take_sample(rows)
            self._encoded[split], self.fingerprints[split] = load_or_encode(
                self.tokenizer,
                read_conversations(self.task, rows),
                self.max_length,
                self.cache_dir,
            )
            if self._streamed and split == "train":
                self.fingerprints[split] += f" of {len(self._streamed)} rows"
            padded_rows = self.batch_size if self.batching == "padded" else 1
            self.ledgers[split] = make_ledger(split, self._encoded[split], padded_rows)
            if isinstance(self.task, Mixture):
                sources = [self.task.source_of(row) for _, row in rows]
                self.sources[split] = group_by_source(sources, self._encoded[split])

    def _describe(self, splits: list[Split]) -> list[str]:
        texts = [format_ledgers([self.ledgers[split] for split in splits])]
        if self._streamed and "train" in splits:
            rows, sample = len(self._streamed), self.ledgers["train"].rows
            texts.append(
                f"train is streamed: of its {rows:,} rows, the ledger is that of {sample:,}"
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
        world_size = trainer.world_size if trainer else 1
        window_rows = self.batch_size * world_size
        sampler = WindowSampler(
            num_rows=len(rows),
            window_rows=window_rows * (self.accumulate_grad_batches if training else 1),
            seed=self.seed if training else None,
            rank=trainer.global_rank if trainer else 0,
            world_size=world_size,
        )
        if training and trainer:
            # Workers read ahead at once, before Lightning sets the epoch of a resumed run.
            epoch, sampler.first_window = divmod(trainer.global_step, len(sampler))
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
            pin_memory=torch.cuda.is_available(),
        )

    def _base_model_of_trainer(self) -> str:
        base_model = getattr(self.trainer and self.trainer.lightning_module, "base_model", None)
        if base_model is None:
            raise InputError("data.tokenizer: name the tokenizer; there is no base model to ask")
        return str(base_model)

    def _stage_of_trainer(self) -> str:
        stage = self.trainer and self.trainer.state.fn
        return stage.value if stage else "fit"


@rank_zero_only
def _print(*texts: str) -> None:
    print("\n".join(filter(None, texts)), flush=True)

"""The rows of a task as a run sees them, encoded. There is no torch and no Lightning here."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_sft.data.duplicates import Repeat, drop_repeats, find_repeats
from lit_sft.data.encoded_rows import EncodedRows, load_or_encode
from lit_sft.data.failures import FailedRows
from lit_sft.data.fingerprint import hash_rows
from lit_sft.data.ledger import Ledger, describe_lost_fields, describe_markers, make_ledger
from lit_sft.data.lost_fields import OnLostField
from lit_sft.data.messages import OnMarker
from lit_sft.data.overlength import OnOverlength, describe_overlength
from lit_sft.data.sources import group_by_source
from lit_sft.data.splits import (
    Conversation,
    MissingSplit,
    MixedRows,
    NamedRow,
    read_conversations,
    read_split,
    take_sample,
)
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError, require
from lit_sft.paths import default_cache_dir
from lit_sft.tasks.base import ChatTask
from lit_sft.tasks.mixture import Mixture
from lit_sft.tasks.row_sequences import hash_contents
from lit_sft.types import Split


class ChatRows:
    """Chat rows, encoded once with the loss mask proven.

    Args:
        task: Where the rows come from, and how a row reads as a conversation: `lit_sft.GSM8K`,
            `lit_sft.ChatFile`, `lit_sft.Mixture`, or a class of your own.
        tokenizer: A Hub id or folder; without one, the base model's own.
        chat_template: `llama3`, `chatml`, a Jinja file, or the name of one of the tokenizer's own
            templates where it has several; without one, the tokenizer's own (its `default`), or
            `llama3` where it has none. Saved with the adapter; today's date in it is pinned to
            26 July 2024.
        batch_size: Rows a device sees at once.
        accumulate_grad_batches: Such batches an optimizer step, on every device.
        batching: `padding_free` lays the rows of an optimizer step end to end, in as few passes as
            `max_tokens_per_pass` allows; `padded` runs batches of `batch_size` padded rows. The
            gradient is the same.
        max_tokens_per_pass: What is run at once; `auto` is `batch_size` rows of `max_length`, the
            most that a padded batch can be.
        max_length: In tokens.
        on_overlength: What becomes of a longer row. `drop` leaves it out, and says so; `error`
            stops; `truncate_prompt` takes the first words off the longest turns that are not
            learnt, never off an answer or a system turn; `truncate` cuts the end of the row, answer
            and all, so that its stop token is not learnt. What still does not fit is dropped.
        on_lost_field: What becomes of a field of a message that the chat template does not write,
            such as `reasoning_content`, a `name`, the calls of a turn that is only shown, or what a
            system turn says. `error` stops at the first; `drop` trains on the row without it, and
            the ledger counts it by name. A tool call that would be learnt is never dropped: without
            it, the turn would teach to say nothing.
        on_marker: What becomes of a row in which a message holds what parts turns in the chat
            template and is plain text to the tokenizer, such as `### Response:`: a model reads
            another turn there. `keep` trains on it, and the ledger counts and names such rows: what
            is learnt is still what the assistant says, and public data has a few of them. `drop`
            leaves them out, `error` stops. Control tokens are never obeyed in a message.
        val_rows: Rows held out of `train` for validation where the task has no `val` split; with
            one, how many of it to use. 0 trains without validation.
        streaming: Leave the rows of `train` where they are, and encode them when a step needs them,
            for data larger than memory: JSON lines, Parquet and the Hub stay on the disk. The
            ledger of `train` is then that of 1,024 rows; a row that is left out leaves a gap in its
            step. Worth two workers or more.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Decides the order of the training rows.
        dedup: Leave rows out of `train` whose question stands earlier in it, or in `val` or `test`,
            see `lit_sft.data.duplicates`. Without it `val` alone is compared, and the repeated rows
            are counted: `test` may be a download that the run does not need otherwise.
        cache_dir: Where encoded rows are kept between runs; without one, `LIT_SFT_CACHE` or
            `~/.cache/lit_sft`.
    """

    def __init__(
        self,
        task: ChatTask,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        batch_size: int = 4,
        accumulate_grad_batches: int = 4,
        batching: Literal["padding_free", "padded"] = "padding_free",
        max_tokens_per_pass: Literal["auto"] | int = "auto",
        max_length: int = 512,
        on_overlength: OnOverlength = "drop",
        on_lost_field: OnLostField = "error",
        on_marker: OnMarker = "keep",
        val_rows: int = 256,
        streaming: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        dedup: bool = False,
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
        self.on_overlength: OnOverlength = on_overlength
        self.on_lost_field: OnLostField = on_lost_field
        self.on_marker: OnMarker = on_marker
        self.val_rows, self.num_workers, self.seed = val_rows, num_workers, seed
        self.streaming = streaming
        require(
            not (streaming and dedup),
            "data.dedup compares all rows, which data.streaming never holds; use one of them",
        )
        self.tokenizer_path, self.chat_template = tokenizer, chat_template
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._encoded: dict[Split, EncodedRows] = {}
        self.dedup = dedup
        self.streamed: Sequence[NamedRow] | None = None
        self.contents: str | None = None
        self.sources: dict[Split, dict[str, np.ndarray]] = {}
        self.repeats: dict[Split, list[Repeat]] = {}
        self.overlength: dict[Split, str] = {}
        self.lost_fields: dict[Split, str] = {}
        self.markers: dict[Split, str] = {}
        self.ledgers: dict[Split, Ledger] = {}
        self.fingerprints: dict[Split, str] = {}
        self.requests: dict[Split, str] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at first use."""
        if self._tokenizer is None:
            path = self.tokenizer_path or self.find_base_model()
            require(
                path is not None,
                "data.tokenizer: name the tokenizer; there is no base model to ask",
            )
            self._tokenizer = load_tokenizer(str(path), self.chat_template)
        return self._tokenizer

    def find_base_model(self) -> str | None:
        """Return the model whose tokenizer is taken where none is named, or None."""
        return None

    def load_splits(self, splits: Iterable[Split]) -> None:
        """Read and encode splits, unless they are already, and take their ledgers.

        Raises:
            InputError: If a split has no rows, a row cannot be read, or its mask cannot be proven.
        """
        rows = {
            split: read_split(self.task, split, self.val_rows)
            for split in splits
            if split not in self.ledgers
        }
        if self.streaming and "train" in rows:
            self.streamed = rows["train"]
            self.contents = hash_contents(self.streamed)  # and from now on, they must not change
            rows["train"] = take_sample(self.streamed)
        chats = {split: self._read_all(rows[split]) for split in rows}
        removed = 0
        if (train := chats.get("train")) and self.streamed is None:
            self.repeats = find_repeats(train, self._held_out(chats))
            chats["train"] = self.remove_repeats(train, self.repeats)
            removed = len(train) - len(chats["train"])
        for split, conversations in chats.items():
            self._take(split, rows[split], conversations, removed if split == "train" else 0)

    def _take(
        self,
        split: Split,
        rows: Sequence[NamedRow],
        conversations: list[Conversation],
        removed: int,
    ) -> None:
        """Encode a split, and keep what is to be said of it."""
        encoded, request = self.encode(conversations)
        is_sample = self.streamed is not None and split == "train"
        of_all = f" of {len(self.streamed or ())} rows" if is_sample else ""
        self._encoded[split] = encoded
        self.fingerprints[split] = hash_rows(vars(encoded)) + of_all
        self.requests[split] = request + of_all
        self.ledgers[split] = self.measure(split, encoded, removed)
        names, limit = [name for name, _ in conversations], self.max_length
        if too_long := [(names[i], n) for i, n in encoded.find_unfit() if n > limit]:
            dropped = len(too_long) - len(encoded.truncated)
            self.overlength[split] = (
                f"{split}: {describe_overlength(too_long, self.max_length)}; "
                f"{dropped:,} dropped, {len(encoded.truncated):,} truncated"
            )
        if encoded.lost:
            self.lost_fields[split] = f"{split}: {describe_lost_fields(encoded, names)}"
        if encoded.marked:
            fate = "left out" if self.on_marker == "drop" else "kept (data.on_marker)"
            self.markers[split] = f"{split}: {describe_markers(encoded, names)}; {fate}"
        if isinstance(self.task, Mixture):
            if isinstance(rows, MixedRows):
                sources = rows.sources()
            else:  # a sample of a stream
                sources = [self.task.source_of(row) for _, row in rows]
            unique = drop_repeats(sources, self.repeats) if removed else sources
            self.sources[split] = group_by_source(unique, encoded)

    def read(self, split: Split) -> list[Conversation]:
        """Return the named conversations of a split, duplicates and all."""
        return read_conversations(self.task, read_split(self.task, split, self.val_rows))

    def encode(self, conversations: Sequence[Conversation]) -> tuple[EncodedRows, str]:
        """Return the rows of conversations, from the cache if it has them, and their request."""
        return load_or_encode(
            *(self.tokenizer, conversations, self.max_length, self.on_overlength),
            *(self.cache_dir, self.on_lost_field, self.on_marker),
        )

    def remove_repeats(
        self, train: list[Conversation], repeats: Mapping[Split, Sequence[Repeat]]
    ) -> list[Conversation]:
        """Return the rows of `train` to train on: all of them, but for repeats with `dedup`."""
        unique = drop_repeats(train, repeats) if self.dedup else train
        require(
            bool(unique) or not train,
            "data.dedup leaves nothing to train on: every row is a duplicate",
        )
        return unique

    def measure(self, split: Split, encoded: EncodedRows, duplicates: int) -> Ledger:
        """Return the ledger of a split from which so many duplicates were removed."""
        padded_rows = self.batch_size if self.batching == "padded" else 1
        return make_ledger(split, encoded, padded_rows, duplicates)

    def pad_rows(self) -> float:
        """Pad rows from now on, as `batching="padded"` does; return the share of padding in train.

        The ledgers are taken anew.
        """
        self.batching = "padded"
        for split, ledger in self.ledgers.items():
            self.ledgers[split] = self.measure(split, self._encoded[split], ledger.duplicates)
        return self.ledgers["train"].padding_share if "train" in self.ledgers else 0.0

    def _read_all(self, rows: Sequence[NamedRow]) -> list[Conversation]:
        """Read rows; if some cannot be read, look at the others, too, and tell of both."""
        try:
            return read_conversations(self.task, rows)
        except FailedRows as error:
            failures = list(error.failures)
            try:
                self.encode(error.readable)
            except FailedRows as further:
                failures += further.failures
            except InputError:
                pass  # all are too long, say
            raise FailedRows(failures, error.total) from None

    def _held_out(
        self, chats: Mapping[Split, list[Conversation]]
    ) -> dict[Split, list[Conversation]]:
        compared: list[Split] = ["val"] if self.val_rows else []
        held_out = {split: chats.get(split) or self.read(split) for split in compared}
        if self.dedup:
            with suppress(MissingSplit):
                held_out["test"] = self.read("test")
        return held_out

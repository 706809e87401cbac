"""The options of a run's data, as `fit` and `inspect` take them. There is no torch here."""

from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lit_sft.data.lost_fields import OnLostField
from lit_sft.data.messages import OnMarker
from lit_sft.data.row_policy import OnOverlength, RowPolicy
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.data.tool_schemas import OnBadCall
from lit_sft.errors import require
from lit_sft.paths import default_cache_dir
from lit_sft.tasks.base import ChatTask


class DataOptions:
    """Chat rows, encoded once with the loss mask proven.

    Args:
        task: Where the rows come from, and how a row reads as a conversation: `lit_sft.GSM8K`,
            `lit_sft.ChatFile`, `lit_sft.Mixture`, or a class of your own.
        tokenizer: A Hub id or folder; without one, the base model's own.
        chat_template: `llama3`, `chatml`, a Jinja file, or the name of one of the tokenizer's own
            templates where it has several; without one, the tokenizer's own (its `default`), or
            `llama3` where it has none. Saved with the adapter; today's date in it is pinned to
            26 July 2024.
        template_kwargs: What the template is told beside the turns, such as `{enable_thinking:
            false}`; evaluation, the adapter's folder and the exports have it, too.
        batch_size: Rows a device sees at once.
        accumulate_grad_batches: Such batches an optimizer step, on every device.
        batching: `padding_free` lays the rows of an optimizer step end to end, in as few passes as
            `max_tokens_per_pass` allows; `padded` runs batches of `batch_size` padded rows. The
            gradient is the same.
        max_tokens_per_pass: What is run at once; `auto` is `batch_size` rows of `max_length`, the
            most that a padded batch can be, and on a GPU up to a whole optimizer step, as far as
            its memory goes.
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
        on_bad_call: What becomes of a row in which the assistant, in a turn that is learnt, calls a
            tool that the row's `tools` do not declare, or with arguments that break its JSON
            schema. `keep` trains on it, and the ledger counts and names such rows; `drop` leaves
            them out, `error` stops at the first.
        learn_thoughts: Whether the thoughts before an answer are learnt with it; otherwise they are
            shown, with the marks around them. What the generation prompt itself writes, an opened
            `<think>` or an empty thought, never is.
        val_rows: Rows held out of `train` for validation where the task has no `val` split; with
            one, how many of it to use. `auto` is a tenth of `train`, at most 256, or 256 of a `val`
            split. 0 trains without validation.
        streaming: Leave the rows of `train` where they are, and encode them when a step needs them,
            for data larger than memory: JSON lines, Parquet and the Hub stay on the disk. The
            ledger of `train` is then that of 1,024 rows; a row that is left out leaves a gap in its
            step. Worth two workers or more.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Decides the order of the training rows.
        dedup: Leave rows out of `train` whose question stands earlier in it, or in `val` or `test`,
            see `lit_sft.data.duplicates`. Without it `val` alone is compared, and the repeated rows
            are counted: `test` may be a download that the run does not need otherwise.
        predict_on: What `lit-sft predict` answers: the split `test`, `val` or `train`, or a file of
            prompts in any format of `lit_sft.ChatFile`, with answers or without.
        compare_with: A `predictions.jsonl` of `lit-sft predict` on the split `test`: `lit-sft test`
            says what was won and lost since, by `GenerationEval`, which grades its answers anew.
        cache_dir: Where encoded rows are kept between runs; without one, `LIT_SFT_CACHE` or
            `~/.cache/lit_sft`.
    """

    def __init__(
        self,
        task: ChatTask,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        batch_size: int = 4,
        accumulate_grad_batches: int = 4,
        batching: Literal["padding_free", "padded"] = "padding_free",
        max_tokens_per_pass: Literal["auto"] | int = "auto",
        max_length: int = 512,
        on_overlength: OnOverlength = "drop",
        on_lost_field: OnLostField = "error",
        on_marker: OnMarker = "keep",
        on_bad_call: OnBadCall = "keep",
        learn_thoughts: bool = True,
        val_rows: Literal["auto"] | int = "auto",
        streaming: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        dedup: bool = False,
        predict_on: str = "test",
        compare_with: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.task, self.batch_size = task, batch_size
        self.policy = RowPolicy(
            max_length, on_overlength, on_lost_field, on_marker, on_bad_call, learn_thoughts
        )
        self.accumulate_grad_batches, self.batching = accumulate_grad_batches, batching
        self.max_tokens_per_pass = (
            batch_size * max_length if max_tokens_per_pass == "auto" else max_tokens_per_pass
        )
        self.leaves_passes_open = max_tokens_per_pass == "auto"
        self.val_rows, self.num_workers, self.seed = val_rows, num_workers, seed
        self.streaming, self.dedup, self.predict_on = streaming, dedup, predict_on
        self.compare_with = compare_with
        self.tokenizer_path, self.chat_template = tokenizer, chat_template
        self.template_kwargs = template_kwargs
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._check()

    def _check(self) -> None:
        least = {"batch_size": 1, "accumulate_grad_batches": 1, "val_rows": 0, "num_workers": 0}
        for name, lowest in least.items():
            value, what = getattr(self, name), "be positive" if lowest else "not be negative"
            require(value == "auto" or value >= lowest, f"data.{name} must {what}, got {value}")
        require(
            self.max_length > 1,
            f"data.max_length must be at least 2 tokens, got {self.max_length}",
        )
        require(
            self.max_tokens_per_pass >= self.max_length,
            f"data.max_tokens_per_pass={self.max_tokens_per_pass} cannot hold a row of "
            f"data.max_length={self.max_length} tokens; raise it to that at least",
        )
        require(
            not (self.streaming and self.dedup),
            "data.dedup compares all rows, which data.streaming never holds; use one of them",
        )

    @property
    def max_length(self) -> int:
        """Of a row, in tokens."""
        return self.policy.max_length

    @property
    def padded_rows(self) -> int:
        """Rows that are padded to one length; 1 where nothing is padded."""
        return self.batch_size if self.batching == "padded" else 1

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at first use."""
        if self._tokenizer is None:
            path = self.tokenizer_path or self.find_base_model()
            require(
                path is not None,
                "data.tokenizer: name the tokenizer; there is no base model to ask",
            )
            self._tokenizer = load_tokenizer(str(path), self.chat_template, self.template_kwargs)
        return self._tokenizer

    def find_base_model(self) -> str | None:
        """Return the model whose tokenizer is taken where none is named, or None."""
        return None

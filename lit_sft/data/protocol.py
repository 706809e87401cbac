"""What a run expects of a data module: `SFTDataModule` has it all, one of your own what it needs.

Any `lightning.LightningDataModule` will do whose loaders hand out windows, lists of
`lit_sft.types.Batch`, one an optimizer step. With `RunData` it trains, is evaluated by its loss,
saves an adapter and is resumed: from where its training loader begins, which is `first_window` of a
`lit_sft.data.windows.WindowSampler` in a `WindowLoader`. (A plain `DataLoader` begins its epoch
anew, of which Lightning warns.) What more it has, it gains:

| it has | and so |
|---|---|
| `GradedData` | `GenerationEval` measures the exact match |
| `SizedData` | `GradientCheckpointing` can choose, and advice on memory has numbers |
| `source_names(split)` | a mixture, with a loader a source, has a loss of each |
| `leaves_passes_open`, `widen_passes(tokens)` | a GPU decides how many tokens a pass has |
| `pad_rows()` | a model that cannot keep packed rows apart is trained on padded ones |
| `compare_with` | a test says what was won and lost against earlier answers |
| `name_rows(epoch, window)` | a step that is not finite names its rows |
| `request_of(split)` | checkpoints of the first version can be compared |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from lit_sft.errors import InputError

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from transformers import PreTrainedTokenizerBase

    from lit_sft.tasks.base import ChatTask
    from lit_sft.types import ValRows


class RunData(Protocol):
    """What every run needs."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With its chat template; saved with the adapter, and read for the stop tokens."""

    def describe_run(self) -> dict[str, Any]:
        """Return what must not change when a run is resumed, as plain values by dotted names.

        Whatever decides which rows a step sees; `data.rows` is a hash of them, for instance.
        """

    def describe_data(self) -> dict[str, object]:
        """Return figures of each split, as plain values by its name; loggers keep them."""


class GradedData(Protocol):
    """What `GenerationEval` needs to let the model answer."""

    @property
    def task(self) -> ChatTask:
        """Where the rows come from, and who grades an answer."""

    @property
    def val_rows(self) -> ValRows:
        """How many rows are held out of `train`, where the task has no split `val`."""


@runtime_checkable
class SizedData(Protocol):
    """How much a device sees at once."""

    @property
    def batching(self) -> Literal["padding_free", "padded"]:
        """Whether rows are packed, or padded to one length."""

    @property
    def batch_size(self) -> int:
        """Rows."""

    @property
    def accumulate_grad_batches(self) -> int:
        """Such batches an optimizer step."""

    @property
    def max_length(self) -> int:
        """Tokens of a row."""

    @property
    def max_tokens_per_pass(self) -> int:
        """Tokens of packed rows."""


def run_data(trainer: pl.Trainer) -> RunData:
    """Return the data module of a trainer.

    Raises:
        InputError: If there is none, or it lacks what every run needs.
    """
    data: RunData = _having(trainer, RunData, "a run")
    return data


def graded_data(trainer: pl.Trainer) -> GradedData:
    """Return the data module of a trainer, for `GenerationEval`.

    Raises:
        InputError: If there is none, or it lacks what evaluation needs.
    """
    data: GradedData = _having(trainer, GradedData, "GenerationEval")
    return data


def _having(trainer: pl.Trainer, protocol: type, who: str) -> Any:
    data = getattr(trainer, "datamodule", None)
    needed = [name for name in vars(protocol) if not name.startswith("_")]
    if data is None:
        raise InputError(
            f"{who} takes a data module with {', '.join(needed)}, such as lit_sft.SFTDataModule; "
            "the trainer was given none"
        )
    missing = [name for name in needed if not hasattr(data, name)]
    if missing:
        raise InputError(
            f"{who} takes a data module with {', '.join(needed)}, see lit_sft.data.protocol; "
            f"{type(data).__name__} has no {', '.join(missing)}"
        )
    return data

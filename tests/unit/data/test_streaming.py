"""Rows that are encoded when their turn comes: which, how often, and with how little memory."""

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from datasets import Dataset
from plain_module import PlainModule

from lit_sft import ChatFile, Mixture, SFTDataModule
from lit_sft.data.splits import SAMPLE_ROWS, take_sample
from lit_sft.errors import InputError
from lit_sft.tasks.json_rows import JsonLines


def write(path, count: int, long=(), broken=None):
    """Row `n` asks for `n`; some are too long, and one may have no answer."""
    with path.open("w") as file:
        for n in range(count):
            answer = None if n == broken else "x" * 300 if n in long else f"{n}"
            file.write(json.dumps({"question": f"{n}?", "answer": answer}) + "\n")
    return str(path)


QUIET = {
    "accelerator": "cpu",
    "precision": "32-true",
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


class Steps(pl.Callback):
    """Keeps the weights around each step, and what it logged."""

    def __init__(self) -> None:
        self.weights, self.logged = [], []

    def on_train_batch_start(self, trainer, pl_module, *args) -> None:
        trainer.callback_metrics.clear()
        self._keep(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.logged.append(dict(trainer.callback_metrics))

    def on_train_end(self, trainer, pl_module) -> None:
        self._keep(pl_module)

    def _keep(self, pl_module) -> None:
        weights = [p.detach().flatten() for p in pl_module.trained_parameters.values()]
        self.weights.append(torch.cat(weights).clone())


def make_data(base, task, **options) -> SFTDataModule:
    given = {"batch_size": 2, "accumulate_grad_batches": 2, "val_rows": 4, "max_length": 100}
    data = SFTDataModule(task, tokenizer=str(base), **{"streaming": True} | given | options)
    data.setup("fit")
    return data


def ids(loader) -> list:
    return [[batch["input_ids"].tolist() for batch in window] for window in loader]


@pytest.mark.parametrize(("num_workers", "kind"), [(0, "jsonl"), (2, "jsonl"), (2, "parquet")])
@pytest.mark.parametrize("batching", ["padding_free", "padded"])
def test_a_stream_equals_rows_in_memory(tiny_base, tmp_path, num_workers, kind, batching):
    path = write(tmp_path / "a.jsonl", 30)
    if kind == "parquet":
        Dataset.from_list(list(JsonLines(Path(path)))).to_parquet(path := f"{path}.parquet")
    task = ChatFile(path)
    streamed = make_data(tiny_base, task, num_workers=num_workers, batching=batching)
    held = make_data(tiny_base, task, streaming=False, batching=batching)
    whole = ids(held.train_dataloader())
    assert ids(streamed.train_dataloader()) == whole
    loader = streamed.train_dataloader()
    loader.sampler.first_window = 3
    assert ids(loader) == whole[3:]
    assert ids(streamed.val_dataloader()) == ids(held.val_dataloader())


def test_two_ranks_with_two_workers_each_see_every_row_once(tiny_base, tmp_path):
    data = make_data(tiny_base, ChatFile(write(tmp_path / "a.jsonl", 41)), num_workers=2)
    seen = []
    for rank in range(2):
        loader = data.train_dataloader()
        sampler = loader.sampler  # as DDP would have the data module make it
        sampler.rank, sampler.num_replicas, sampler.window_rows = rank, 2, 8
        seen += [row for window in ids(loader) for [row] in window if row]
    text = data.tokenizer.decode([token for row in seen for token in row])
    asked = [part.split("?")[0] for part in text.split("user<|end_header_id|>\n\n")[1:]]
    val = data.tokenizer.decode([t for [[row]] in ids(data.val_dataloader()) for t in row])
    held_out = {part.split("?")[0] for part in val.split("user<|end_header_id|>\n\n")[1:]}
    assert len(asked) == 37
    assert set(asked) == {str(n) for n in range(41)} - held_out


def test_rows_that_are_too_long_leave_a_gap_and_are_named(tiny_base, tmp_path):
    path = write(tmp_path / "a.jsonl", 12, long=(3, 7, 8, 9))
    data = make_data(tiny_base, ChatFile(path), val_rows=0, batch_size=1)
    with pytest.warns(UserWarning, match=r"train row \d is longer than data.max_length: left out"):
        windows = list(data.train_dataloader())
    rows = [sum(len(batch["cu_seq_lens"]) - 1 for batch in window) for window in windows]
    assert len(rows) == 6
    assert sum(rows) == 8
    path = write(tmp_path / "b.jsonl", 12, long=range(1, 12))
    data = make_data(tiny_base, ChatFile(path), val_rows=0, batch_size=1)
    with pytest.warns(UserWarning, match="left out, as 1") as warned:
        windows = list(data.train_dataloader())
    assert str(warned[-1].message).endswith("as 10 so far on this rank")
    assert sorted(map(len, windows)) == [0, 0, 0, 0, 0, 1]


def test_a_rank_without_a_row_in_the_last_window_reads_none(tiny_base, tmp_path):
    data = make_data(tiny_base, ChatFile(write(tmp_path / "a.jsonl", 12)))
    assert data.train_dataloader().dataset[[]] == ([], [])


@pytest.mark.parametrize("flat", [True, False])
def test_a_window_without_rows_changes_no_weight_and_has_no_loss(tiny_base, tmp_path, flat):
    path = write(tmp_path / "a.jsonl", 8, long=range(1, 8))
    sizes = {"batch_size": 1, "accumulate_grad_batches": 1, "max_length": 100, "val_rows": 0}
    data = SFTDataModule(ChatFile(path), streaming=True, **sizes)
    switches = {"fused_head": True, "fused_lora": True, "flat_optimizer": flat}
    module = PlainModule(str(tiny_base), optimizer="adamw", weight_decay=0.1, **switches)
    steps = Steps()
    trainer = pl.Trainer(
        max_epochs=1, default_root_dir=tmp_path, logger=False, callbacks=[steps], **QUIET
    )
    with pytest.warns(UserWarning, match="left out, as 1"):
        trainer.fit(module, data)
    assert trainer.global_step == 8
    assert sum("train/loss" in metrics for metrics in steps.logged) == 1
    changed = [not torch.equal(a, b) for a, b in pairwise(steps.weights)]
    assert sum(changed) == 1, "by the one row that fits, and by no momentum after it"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_row_is_named_when_its_turn_comes(tiny_base, tmp_path, num_workers, monkeypatch):
    monkeypatch.setattr("lit_sft.data.splits.SAMPLE_ROWS", 2)
    data = make_data(
        tiny_base, ChatFile(write(tmp_path / "a.jsonl", 30, broken=11)), num_workers=num_workers
    )
    with pytest.raises(InputError) as error:
        list(data.train_dataloader())
    assert str(error.value).startswith("train row 11: there is no answer")
    assert "Traceback" not in str(error.value)


def test_a_sample_is_looked_at_before_training(tiny_base, tmp_path, capsys):
    data = make_data(tiny_base, ChatFile(write(tmp_path / "a.jsonl", 3000)))
    assert data.prepared["train"].ledger.rows == SAMPLE_ROWS
    assert "of its 2,996 rows, these are the figures of 1,024" in capsys.readouterr().out
    assert data.prepared["train"].fingerprint.endswith(" of 2996 rows")
    assert take_sample(range(3)) == [0, 1, 2]
    with pytest.raises(InputError, match="train row 0: there is no answer"):
        make_data(tiny_base, ChatFile(write(tmp_path / "b.jsonl", 3000, broken=0)), val_rows=0)


def test_a_mixture_streams(tiny_base, tmp_path):
    tasks = {x: ChatFile(write(tmp_path / f"{x}.jsonl", 40)) for x in "ab"}
    data = make_data(tiny_base, Mixture(tasks, weights=[3, 1]))
    rows = [len(batch["cu_seq_lens"]) - 1 for window in data.train_dataloader() for batch in window]
    assert sum(rows) == 38 + round(38 / 3)
    assert list(data.prepared["train"].sources) == ["a", "b"] or list(
        data.prepared["train"].sources
    ) == ["b", "a"]


def test_memory_grows_by_a_few_bytes_a_row(tiny_base, tmp_path):
    """Where lines start, while they are looked for; their order is 8 more, in a tensor."""

    def peak(count: int) -> int:
        path = write(tmp_path / f"{count}.jsonl", count)
        tracemalloc.start()
        windows = iter(make_data(tiny_base, ChatFile(path)).train_dataloader())
        for _ in range(3):
            next(windows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(2_000)  # what is imported once
    few, many = peak(2_500), peak(42_500)
    assert (many - few) / 40_000 < 12

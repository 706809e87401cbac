"""The Lightning shell: splits, ledgers, loaders."""

import os
import re
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig

from lit_sft import ChatTask, SFTDataModule
from lit_sft.data.prompts import decode_answer, find_stop_ids, make_prompts
from lit_sft.data.splits import AllBut, read_split
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.files import ABANDONED_SECONDS
from lit_sft.paths import default_cache_dir


class Numbers(ChatTask):
    """Row `n` asks for `n + 1`."""

    def __init__(self, train: int = 50, val: int = 0) -> None:
        self.sizes = {"train": train, "val": val, "test": 7}

    def rows(self, split):
        return [{"n": n} for n in range(self.sizes[split])] or None

    def messages(self, row):
        return [
            {"role": "user", "content": f"{row['n']}?"},
            {"role": "assistant", "content": f"{row['n'] + 1}"},
        ]


def make_data(base, **kwargs) -> SFTDataModule:
    data = SFTDataModule(Numbers(), tokenizer=str(base), **{"val_rows": 10} | kwargs)
    data.setup("fit")
    return data


def test_held_out_rows_are_fixed_and_not_trained_on():
    task = Numbers()
    val = [name for name, _ in read_split(task, "val", val_rows=10)]
    train = [name for name, _ in read_split(task, "train", val_rows=10)]
    assert val == [name for name, _ in read_split(task, "val", val_rows=10)]
    assert (len(val), len(train), set(val) & set(train)) == (10, 40, set())
    assert val != [f"train row {i}" for i in range(10)]


@given(count=st.integers(0, 30), left_out=st.sets(st.integers(0, 29)))
def test_all_numbers_but_some(count, left_out):
    left_out = sorted(x for x in left_out if x < count)
    assert list(AllBut(count, left_out)) == [x for x in range(count) if x not in left_out]


def test_a_val_split_of_the_tasks_own_is_used():
    task = Numbers(val=5)
    assert [name for name, _ in read_split(task, "val", val_rows=3)] == [
        "val row 0",
        "val row 1",
        "val row 2",
    ]
    assert len(read_split(task, "train", val_rows=3)) == 50


def test_loaders_hand_out_windows(tiny_base):
    sizes = {"batch_size": 3, "accumulate_grad_batches": 4, "max_length": 60}
    padded = make_data(tiny_base, batching="padded", **sizes)
    windows = list(padded.train_dataloader())
    assert [[len(batch["input_ids"]) for batch in window] for window in windows] == [
        [3, 3, 3, 3],
        [3, 3, 3, 3],
        [3, 3, 3, 3],
        [3, 1],
    ]
    data = make_data(tiny_base, **sizes)
    packed = list(data.train_dataloader())
    assert [sum(len(batch["cu_seq_lens"]) - 1 for batch in window) for window in packed] == [
        12, 12, 12, 4,
    ]  # fmt: skip
    assert max(batch["num_tokens"] for window in packed for batch in window) <= 3 * 60
    for ours, theirs in zip(packed, windows, strict=True):
        assert sum(x["num_supervised"] for x in ours) == sum(x["num_supervised"] for x in theirs)
    assert [
        [len(batch["input_ids"]) for batch in window] for window in padded.val_dataloader()
    ] == [
        [3, 3, 3, 1],
    ]
    (passes,) = data.val_dataloader()
    assert sum(len(batch["cu_seq_lens"]) - 1 for batch in passes) == 10
    assert len(passes) == 2  # as few as the tokens of a pass allow


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing_and_a_loader_resumes(tiny_base, num_workers):
    data = make_data(tiny_base, batch_size=2, num_workers=num_workers)

    def ids(window):
        return [batch["input_ids"].tolist() for batch in window]

    whole = [ids(window) for window in make_data(tiny_base, batch_size=2).train_dataloader()]
    loader = data.train_dataloader()
    loader.sampler.first_window = 2
    assert [ids(window) for window in loader] == whole[2:]
    assert [ids(window) for window in loader] == whole  # the next epoch is whole again


def test_the_ledger_is_printed_once(tiny_base, capsys):
    data = make_data(tiny_base)
    data.setup("fit")
    data.setup("test")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["split", "train", "val", "split", "test"]


def test_prompts_end_where_the_answer_begins(tiny_base):
    tokenizer = load_tokenizer(str(tiny_base))
    prompt = make_prompts(Numbers(), "test", tokenizer, val_rows=10)[3]
    text = tokenizer.decode(prompt.input_ids)
    assert text.endswith("3?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert text.count("<|begin_of_text|>") == 1
    assert prompt.messages[-1]["content"] == "4"


def test_shots_are_solved_training_rows_and_the_same_for_all(tiny_base):
    tokenizer = load_tokenizer(str(tiny_base))
    prompts = make_prompts(Numbers(), "test", tokenizer, val_rows=10, num_shots=2)
    texts = [tokenizer.decode(prompt.input_ids) for prompt in prompts]
    heads = {text.rsplit("<|start_header_id|>user", 1)[0] for text in texts}
    assert len(heads) == 1
    assert heads.pop().count("<|start_header_id|>assistant") == 2
    with pytest.raises(InputError, match="num_shots=41, but train has 40 rows"):
        make_prompts(Numbers(), "test", tokenizer, val_rows=10, num_shots=41)


def test_answers_stop_at_every_end_token_there_is(tiny_base):
    tokenizer = load_tokenizer(str(tiny_base))
    turn_end, own_end = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert tokenizer.eos_token_id == turn_end  # the base's own has given way, and still ends it
    assert set(find_stop_ids(tokenizer)) == {turn_end, own_end}
    configs = LlamaConfig(eos_token_id=[7, turn_end]), GenerationConfig(eos_token_id=9)
    assert find_stop_ids(tokenizer, *configs) == sorted({7, 9, turn_end, own_end})
    assert set(find_stop_ids(tokenizer, LlamaConfig(eos_token_id=None))) == {turn_end, own_end}


def test_answers_stop_at_the_templates_own_token(tiny_base):
    tokenizer = load_tokenizer(str(tiny_base))
    tokenizer.eos_token = "<|begin_of_text|>"
    names = tokenizer.convert_ids_to_tokens(find_stop_ids(tokenizer))
    assert set(names) == {"<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>"}


def test_what_follows_a_control_token_does_not_continue_the_answer(tiny_base):
    tokenizer = load_tokenizer(str(tiny_base))
    said = tokenizer.encode("#### 12<|begin_of_text|>111", add_special_tokens=False)
    assert decode_answer(tokenizer, said) == "#### 12<|begin_of_text|>111"


def test_a_pass_must_hold_the_longest_row():
    with pytest.raises(InputError, match=r"max_tokens_per_pass=100 cannot hold a row .*=512"):
        SFTDataModule(Numbers(), max_tokens_per_pass=100)


def test_a_tokenizer_is_needed(tmp_path):
    with pytest.raises(InputError, match=r"data\.tokenizer: name the tokenizer"):
        SFTDataModule(Numbers(), val_rows=10).setup("fit")


class Uneven(Numbers):
    """Every fifth row is longer."""

    def messages(self, row):
        user, assistant = super().messages(row)
        return [
            user | {"content": ("long " if row["n"] % 5 == 0 else "") + user["content"]},
            assistant,
        ]


def test_the_rows_of_a_window_are_called_as_the_task_numbers_them(tiny_base):
    sizes = {"val_rows": 10, "batch_size": 3, "accumulate_grad_batches": 2, "max_length": 30}
    data = SFTDataModule(Uneven(), tokenizer=str(tiny_base), **sizes)
    data.setup("fit")
    assert 0 < data.prepared["train"].ledger.kept < data.prepared["train"].ledger.rows == 40
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    for number, window in enumerate(loader):
        text = data.tokenizer.decode(torch.cat([batch["input_ids"].flatten() for batch in window]))
        names = [f"train row {n}" for n in re.findall(r"(\d+)\?", text)]
        assert sorted(data.name_rows(epoch=1, window=number)) == sorted(names)
    assert number == len(loader) - 1


class Repeating(Numbers):
    """Ten rows of train; four of them stand in train, in val or in test a second time."""

    def __init__(self, has_test: bool = True) -> None:
        super().__init__()
        self.has_test = has_test

    def rows(self, split):
        numbers = {"train": [0, 1, 2, 3, 4, 5, 6, 6, 7, 0], "val": [100, 1], "test": [2, 200]}
        return [{"n": n} for n in numbers[split] if split != "test" or self.has_test]


def test_dedup_removes_and_counts_what_stands_elsewhere(tiny_base, capsys):
    data = SFTDataModule(Repeating(), tokenizer=str(tiny_base), dedup=True)
    data.setup("fit")
    ledger = data.prepared["train"].ledger
    assert (ledger.rows, ledger.kept, ledger.dropped, ledger.duplicates) == (10, 6, 0, 4)
    trained = {data.tokenizer.decode(data.prepared["train"].encoded[i].input_ids) for i in range(6)}
    assert sorted(n for n in range(9) if any(f"\n{n}?" in text for text in trained)) == [
        0, 3, 4, 5, 6, 7,
    ]  # fmt: skip
    assert (
        "removed from train, as their question stands: 2 earlier in train, 1 in val, 1 in test"
        in (capsys.readouterr().out)
    )
    assert data.describe_run()["data.dedup"] is True


def test_without_dedup_test_is_not_read_and_repeats_are_one_line(tiny_base, capsys):
    class NoTest(Repeating):
        def rows(self, split):
            assert split != "test"
            return super().rows(split)

    data = SFTDataModule(NoTest(), tokenizer=str(tiny_base))
    data.setup("fit")
    assert data.prepared["train"].ledger.kept == 10
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("duplicates of train's questions: 2 earlier in train, 1 in val; ")


def test_dedup_does_without_a_test_split(tiny_base):
    data = SFTDataModule(Repeating(has_test=False), tokenizer=str(tiny_base), dedup=True)
    data.setup("fit")
    assert data.prepared["train"].ledger.kept == 7


def test_dedup_that_leaves_nothing_is_an_error(tiny_base):
    class Copies(Numbers):
        def rows(self, split):
            return [{"n": 1}]

    with pytest.raises(InputError, match=r"data\.dedup leaves nothing to train on"):
        SFTDataModule(Copies(), tokenizer=str(tiny_base), dedup=True).setup("fit")


def test_what_killed_runs_have_left_in_any_folder_of_the_cache_is_removed(tiny_base, tmp_path):
    """A write into the same folder would sweep it, but a file whose lines are known writes none."""
    long_ago = time.time() - ABANDONED_SECONDS - 1
    places = [root / name for root in (tmp_path, default_cache_dir()) for name in ("lines", "")]
    for place in places:
        for kernel, when in (("ffffffff", long_ago), ("00000000", time.time())):
            left = place / f".x.index.{kernel}.0123abcd.tmp"
            left.mkdir(parents=True)
            os.utime(left, (when, when))
        (place / "x.index").write_text("kept")
    data = SFTDataModule(Numbers(), str(tiny_base), val_rows=10, cache_dir=str(tmp_path))
    data.prepare_data()
    for place in places:
        stayed = {".x.index.00000000.0123abcd.tmp", "x.index"}
        assert {path.name for path in place.glob("*.*") if path.suffix != ".safetensors"} == stayed


class Longer(Numbers):
    """Some rows are much longer than others."""

    def messages(self, row):
        question, answer = super().messages(row)
        return [question, answer | {"content": "1" * (1 + 7 * (row["n"] % 4))}]


@pytest.mark.parametrize("batching", ["padding_free", "padded"])
def test_no_rank_waits_long_for_another(tiny_base, batching):
    """Dealt out as they come, ranks would differ by more than a row in many a window."""
    tokens = []
    for rank in (0, 1):
        options = {"batch_size": 8, "accumulate_grad_batches": 1, "val_rows": 10}
        data = SFTDataModule(Longer(), str(tiny_base), batching=batching, **options)
        data.setup("fit")
        data.trainer = SimpleNamespace(
            world_size=2, global_rank=rank, global_step=0, limit_train_batches=1.0
        )
        windows = list(data.train_dataloader())
        tokens.append([sum(batch["num_tokens"] for batch in window) for window in windows])
    lengths = data.prepared["train"].encoded.lengths()
    most = max(lengths) - min(lengths)
    assert len(tokens[0]) == len(tokens[1]) == 3
    assert all(abs(ours - theirs) <= most for ours, theirs in zip(*tokens, strict=True))

"""A tokenizer that is not the base's, or has tokens that the base has no row for."""

import json
import shutil
from types import SimpleNamespace

import pytest

from lit_sft import ChatTask, SFTDataModule, SFTModule
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.data.vocabulary import (
    require_chat_embeddings,
    require_embeddings,
    require_own_vocabulary,
)
from lit_sft.errors import InputError


class Says(ChatTask):
    """The same answer in every row of `train`, and, if it differs, in the last."""

    def __init__(self, last: str = "a") -> None:
        self.last = last

    def rows(self, split):
        return [{"answer": "a"}] * 2099 + [{"answer": self.last}] if split != "val" else None

    def messages(self, row):
        return [{"role": "user", "content": "q"}, {"role": "assistant", "content": row["answer"]}]


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    """A copy of the tiny tokenizer to change."""
    return shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")


def swap(folder, *tokens):
    """Let two tokens change places in a vocabulary."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = tokens
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))


def test_a_tokenizer_of_another_base_is_told_by_a_token(folder, tiny_tokenizer):
    own = load_tokenizer(str(tiny_tokenizer))
    require_own_vocabulary(own, str(tiny_tokenizer), str(folder))
    swap(folder, "a", "b")
    says = (
        r"is not the tokenizer of .*: 2 of 256 tokens differ, such as \d+, which is 'a' where .*'b'"
    )
    with pytest.raises(InputError, match=says):
        require_own_vocabulary(own, str(tiny_tokenizer), str(folder))


def test_added_tokens_may_be_more_or_have_other_names(folder, tiny_tokenizer):
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|finetune_right_pad_id|>", "<|reserved_0|>"))
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    tokenizer.add_tokens(["<|tool|>"], special_tokens=True)
    require_own_vocabulary(tokenizer, str(tiny_tokenizer), str(folder))


def test_a_base_whose_tokenizer_is_not_at_hand_says_nothing(tiny_tokenizer, tmp_path):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    require_own_vocabulary(tokenizer, str(tiny_tokenizer), str(tmp_path))
    require_own_vocabulary(tokenizer, str(tiny_tokenizer), "nobody/nothing")


def test_only_tokens_in_use_need_a_row(tiny_tokenizer):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    used = tokenizer.convert_tokens_to_ids("<|eot_id|>") + 1
    tokenizer.add_tokens(["<|never|>"], special_tokens=True)
    require_chat_embeddings(tokenizer, used)  # the token that was added never occurs
    require_chat_embeddings(tokenizer, 2 * len(tokenizer))  # an embedding that was filled up
    says = (
        rf"has {len(tokenizer)} tokens, .* has {used - 1} rows, none for {used - 1}, '<.eot_id.>' "
    )
    with pytest.raises(InputError, match=says):
        require_chat_embeddings(tokenizer, used - 1)
    tokenizer.add_tokens(["<|late|>"], special_tokens=True)
    tokenizer.pad_token = "<|late|>"
    with pytest.raises(InputError, match="rows are padded with it"):
        require_chat_embeddings(tokenizer, used)
    with pytest.raises(InputError, match=r"\(in train\)"):
        require_embeddings(tokenizer, [0, used], used, "in train")


def attach(data: SFTDataModule, base) -> SFTDataModule:
    """Give a data module a trainer that knows its base, as Lightning does."""
    module = SFTModule(str(base))
    state = SimpleNamespace(fn=None)
    data.trainer = SimpleNamespace(
        lightning_module=module, state=state, world_size=1, global_rank=0, global_step=0,
        limit_train_batches=1.0,
    )  # fmt: skip
    return data


def test_a_word_that_was_added_to_the_tokenizer_is_found_where_it_is_said(tiny_base, folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["wonderful"])
    tokenizer.save_pretrained(folder)
    quiet = attach(SFTDataModule(Says(), str(folder), max_length=64, val_rows=0), tiny_base)
    quiet.prepare_data()
    quiet.setup("fit")
    loud = SFTDataModule(Says("wonderful"), str(folder), max_length=64, val_rows=0)
    with pytest.raises(
        InputError, match=r"263 tokens, .* 262 rows, none for 262, 'wonderful' \(in tr"
    ):
        attach(loud, tiny_base).prepare_data()
    prompts = SFTDataModule(Says(), str(folder), max_length=64, val_rows=0)
    prompts.task.messages = lambda row: [
        {"role": "user", "content": "wonderful"}, {"role": "assistant", "content": "a"}
    ]  # fmt: skip
    with pytest.raises(InputError, match="row 0 of test holds it"):
        attach(prompts, tiny_base).predict_dataloader()


def test_a_stream_looks_at_every_row(tiny_base, folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["wonderful"])
    tokenizer.save_pretrained(folder)
    task = Says()
    task.messages = lambda row: [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "wonderful" if row is rows[4] else "a"},
    ]
    rows = [{"n": n} for n in range(3000)]
    task.rows = lambda split: rows if split == "train" else None
    options = {"max_length": 64, "val_rows": 0, "streaming": True, "batch_size": 100}
    data = attach(SFTDataModule(task, str(folder), **options), tiny_base)
    data.prepare_data()
    with pytest.raises(InputError, match=r"none for 262, 'wonderful' \(in train row 4\)"):
        list(data.train_dataloader())

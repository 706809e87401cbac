"""The key of the cache follows whatever encodes; what a run is follows the encoded rows alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lit_sft
from lit_sft import SFTDataModule, WordProblems
from lit_sft.data import token_cache
from lit_sft.data.encoded_rows import hash_rows
from lit_sft.data.token_cache import ENCODER, find_sources, hash_encoder


@pytest.fixture(autouse=True)
def _compute_anew():
    hash_encoder.cache_clear()
    yield
    hash_encoder.cache_clear()


def make_data(base, **options) -> SFTDataModule:
    task = WordProblems(train_rows=20, val_rows=4)
    data = SFTDataModule(task, tokenizer=str(base), val_rows=4, **options)
    data.setup("fit")
    return data


def change_source(monkeypatch, folder, name: str) -> None:
    package = folder / "lit_sft"
    ignored = shutil.ignore_patterns("base", "__pycache__")
    shutil.copytree(Path(lit_sft.__file__).parent, package, ignore=ignored)
    (package / name).write_text((package / name).read_text() + "\nCHANGED = True\n")
    monkeypatch.setattr(token_cache, "PACKAGE", package)


def change_version(monkeypatch, folder, name: str) -> None:
    metadata = folder / f"{name}-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        *(
            (change_source, f"data/{x}.py")
            for x in ("encoded_rows", "encode", "render", "row_policy")
        ),
        *((change_version, name) for name in ("transformers", "tokenizers", "jinja2")),
    ],
)
def test_other_code_has_another_cache_and_the_same_run(
    tiny_base, tmp_path, monkeypatch, change, name
):
    cache = tmp_path / "cache"
    before = make_data(tiny_base, cache_dir=str(cache)).describe_run()
    kept = set(cache.iterdir())
    hash_encoder.cache_clear()
    (tmp_path / "changed").mkdir()
    change(monkeypatch, tmp_path / "changed", name)
    after = make_data(tiny_base, cache_dir=str(cache)).describe_run()
    assert len(set(cache.iterdir()) - kept) == len(kept) == 2
    assert after == before


def test_code_that_does_not_encode_has_the_same_cache(tmp_path, monkeypatch):
    before = hash_encoder()
    hash_encoder.cache_clear()
    change_source(monkeypatch, tmp_path, "data/datamodule.py")
    assert hash_encoder() == before


ENCODING = """
import sys
from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.tokenizer import load_tokenizer

tokenizer = load_tokenizer(sys.argv[1])
chats = [
    (
        f"row {i}",
        [
            {"role": "system", "content": "be <|eot_id|> brief"},
            {"role": "user", "content": f"{i} ü " * i},
            {"role": "assistant", "content": "yes", "weight": 0},
            {"role": "user", "content": "why?"},
            {"role": "assistant", "content": "no" * i},
        ],
    )
    for i in range(1, 40)
]
took_part = set()
sys.setprofile(lambda frame, *_: took_part.add(frame.f_globals.get("__name__", "")))
for policy in ("drop", "truncate_prompt", "truncate"):
    encode_rows(tokenizer, chats, RowPolicy(250, policy))
sys.setprofile(None)
print(*sorted(name for name in took_part if name.startswith("lit_sft.")))
"""


def test_whatever_runs_while_rows_are_encoded_is_hashed(tiny_tokenizer):
    """In a process of its own: in one with handlers and threads of others, a profile may hang."""
    command = [sys.executable, "-c", ENCODING, str(tiny_tokenizer)]
    env = os.environ | {"PYTHONPATH": str(Path(lit_sft.__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    took_part = set(done.stdout.split())
    known = {f"lit_sft.data.{name}" for name in ("encoded_rows", "render", "messages")}
    assert known <= took_part
    assert took_part <= find_sources(ENCODER).keys()


def test_the_hash_of_rows_is_of_their_tokens_labels_and_ends():
    arrays = {
        "input_ids": np.array([1, 2, 3, 4], np.int32),
        "supervised": np.array([False, True, False, True]),
        "offsets": np.array([0, 2, 4]),
        "dropped": np.array([0]),
    }
    others = [
        arrays | {"input_ids": np.array([1, 2, 3, 5], np.int32)},
        arrays | {"supervised": np.array([False, True, True, True])},
        arrays | {"offsets": np.array([0, 3, 4])},
        arrays | {"offsets": np.array([0, 4])},
    ]
    assert len({hash_rows(one) for one in (arrays, *others)}) == 5
    assert hash_rows(arrays | {"dropped": np.array([7, 8])}) == hash_rows(arrays)


def test_rows_with_other_tokens_are_another_run(tiny_base):
    whole = make_data(tiny_base)
    shorter = make_data(
        tiny_base, max_length=int(np.median(whole.prepared["train"].encoded.lengths()))
    )
    roomier = make_data(tiny_base, max_length=511, max_tokens_per_pass=2048)
    rows = [data.describe_run()["data.rows"] for data in (whole, shorter, roomier)]
    assert rows[0] != rows[1]
    assert rows[0] == rows[2], "no row is that long, so the steps are the same"

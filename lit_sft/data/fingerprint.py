"""Hashes of encoded rows: of what was asked for, of what encodes it, and of what came out.

The first two decide what is found in the cache. The last is what a run trains on, and all that a
resumed run must agree in: a new release of a library changes the key of the cache, and changes the
run only where it gives other tokens.
"""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from lit_sft.data.control_tokens import plain_backend
from lit_sft.types import Message

PACKAGE = Path(__file__).parents[1]
ENCODER = "lit_sft.data.encoded_rows"
"""The module that encodes; all that it imports from this package takes part."""
LIBRARIES = ("transformers", "tokenizers", "jinja2")
REQUEST_FORMAT = 2
"""Never raise it: checkpoints of before `hash_rows` hold such hashes, and are compared by them."""


def hash_request(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[tuple[str, Sequence[Message]]],
    max_length: int,
    on_overlength: str,
    on_marker: str = "keep",
) -> str:
    """Return a SHA-256 over all that the encoding is given, in hexadecimal.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        conversations: Each under a name, which decides nothing.
        max_length: In tokens.
        on_overlength: As for `encode_rows`.
        on_marker: Likewise; only `drop` gives other rows.
    """
    digest = hashlib.sha256(f"{REQUEST_FORMAT} {max_length} {on_overlength}\n".encode())
    if on_marker == "drop":
        digest.update(b"without marks\n")
    digest.update(_hash_backend(tokenizer, len(tokenizer)))
    digest.update(str(tokenizer.chat_template).encode())
    digest.update(json.dumps(tokenizer.special_tokens_map, sort_keys=True).encode())
    for _, messages in conversations:
        # What is no JSON is for the encoding to refuse, which says what is wrong with it.
        digest.update(json.dumps(messages, default=repr).encode())
    return digest.hexdigest()


@cache
def hash_encoder() -> str:
    """Return a SHA-256 over the code that encodes and the versions of what it calls."""
    digest = hashlib.sha256()
    for library in LIBRARIES:
        digest.update(f"{library} {version(library)}\n".encode())
    for name, path in find_sources(ENCODER).items():
        digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def make_cache_key(request: str) -> str:
    """Return the name under which the answer to a request, as `hash_request` gives it, is kept."""
    return hashlib.sha256(f"{request} {hash_encoder()}".encode()).hexdigest()


def hash_rows(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 over the rows that a run trains on, in hexadecimal.

    Args:
        arrays: `input_ids`, `supervised` and `offsets` of `EncodedRows`, among others.
    """
    digest = hashlib.sha256()
    for name, dtype in (("input_ids", "<i4"), ("supervised", "?"), ("offsets", "<i8")):
        digest.update(np.ascontiguousarray(arrays[name], dtype=dtype).data)
    return digest.hexdigest()


def find_sources(module: str) -> dict[str, Path]:
    """Return the files of a module of this package and of all that it imports of it, by name."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if name in found or not path.is_file():  # a package, whose `__init__` holds no code
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        waiting = [other for other in waiting if other.startswith("lit_sft.")]
    return dict(sorted(found.items()))


@lru_cache(maxsize=2)
def _hash_backend(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> bytes:
    """It takes a sixth of a second with 128,256 tokens, and changes only where tokens are added."""
    return hashlib.sha256(plain_backend(tokenizer).to_str().encode()).digest()

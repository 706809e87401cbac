"""The cache that spares encoding rows twice: what its files are named after, written and read.

A file is named after a hash of what was asked for and of what encodes it: new code, or a new
release of a library, encodes anew.
"""

import ast
import hashlib
import json
import warnings
import zlib
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from lit_sft.data.control_tokens import plain_backend
from lit_sft.data.encoded_rows import EncodedRows, encode_rows
from lit_sft.data.row_policy import RowPolicy
from lit_sft.data.splits import Conversation
from lit_sft.files import replace_file

PACKAGE = Path(__file__).parents[1]
ENCODER = "lit_sft.data.token_cache"
"""The module that encodes and keeps; all that it imports from this package takes part."""
LIBRARIES = ("transformers", "tokenizers", "jinja2")
REQUEST_FORMAT = 2
"""Never raise it: checkpoints of before `hash_rows` hold such hashes, and are compared by them."""
KINDS = {"lost": "lost ", "marked": "marked ", "bad_calls": "bad call "}
"""By attribute of `EncodedRows`, what opens the names of its arrays in a cache file."""


def load_or_encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    policy: RowPolicy,
    cache_dir: Path,
) -> tuple[EncodedRows, str]:
    """Return the encoded rows, from the cache where it knows them, and the hash of what was asked.

    A damaged cache file is made again; a cache that cannot be written is a warning.

    Raises:
        InputError: As `encode_rows`.
    """
    request = hash_request(tokenizer, conversations, policy)
    path = cache_dir / f"{make_cache_key(request)}.safetensors"
    encoded = _load(path)
    if encoded is None or _is_refused(encoded, policy):
        encoded = encode_rows(tokenizer, conversations, policy)
        try:
            _save(encoded, path)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"the token cache {cache_dir} cannot be written ({error}): this run goes on "
                "without it, and the next one encodes again; set data.cache_dir to another folder",
                stacklevel=2,
            )
    return encoded, request


def hash_request(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], policy: RowPolicy
) -> str:
    """Return a SHA-256 over all that the encoding is given, in hexadecimal.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        conversations: Each under a name, which decides nothing.
        policy: Of which only what gives other rows decides: what is an error gives none.
    """
    length, fate = policy.max_length, policy.on_overlength
    digest = hashlib.sha256(f"{REQUEST_FORMAT} {length} {fate}\n".encode())
    if policy.on_marker == "drop":
        digest.update(b"without marks\n")
    if policy.on_bad_call == "drop":
        digest.update(b"without bad calls\n")
    if not policy.learn_thoughts:
        digest.update(b"without thoughts\n")
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


def _is_refused(encoded: EncodedRows, policy: RowPolicy) -> bool:
    """Return whether rows of the cache hold what is an error now; to encode them again names it."""
    return bool(
        (encoded.lost and policy.on_lost_field == "error")
        or (encoded.marked and policy.on_marker == "error")
        or (encoded.bad_calls and policy.on_bad_call == "error")
    )


def _load(path: Path) -> EncodedRows | None:
    """Return the rows of a cache file, or None where it is missing or damaged."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if (file.metadata() or {}).get("crc32") == _checksum(arrays):
                by_name: Any = {
                    what: {x.removeprefix(k): arrays.pop(x) for x in [*arrays] if x.startswith(k)}
                    for what, k in KINDS.items()
                }
                return EncodedRows(**arrays, **by_name)
    except (SafetensorError, TypeError, ValueError, OSError):
        pass  # a damaged cache costs an encoding, never a run
    return None


def _save(encoded: EncodedRows, path: Path) -> None:
    """Two runs may fill one cache at once: each writes its own file, the last rename wins."""
    arrays = {name: x for name, x in vars(encoded).items() if isinstance(x, np.ndarray)}
    for what, opening in KINDS.items():
        arrays |= {f"{opening}{name}": rows for name, rows in getattr(encoded, what).items()}
    with replace_file(path) as staged:
        save_file(arrays, staged, metadata={"crc32": _checksum(arrays)})


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].data, crc)
    return f"{crc:08x}"


@lru_cache(maxsize=2)
def _hash_backend(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> bytes:
    """It takes a sixth of a second with 128,256 tokens, and changes only where tokens are added."""
    return hashlib.sha256(plain_backend(tokenizer).to_str().encode()).digest()

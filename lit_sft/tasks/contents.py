"""What rows hold, as a hash: the same wherever their files lie, another if one byte of them is."""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lit_sft.tasks.arrow import ArrowRows


def hash_contents(rows: Sequence[Any]) -> str | None:
    """Return a SHA-256 over all rows, in hexadecimal; None where only reading each would tell.

    Args:
        rows: Those that stay on the disk know their own hash, by a method of this function's name;
            those of a list are hashed as JSON. Of another sequence nothing is known.
    """
    datasets = sys.modules.get("datasets")  # a row of it cannot be there before it is
    if datasets is not None and isinstance(rows, datasets.Dataset):
        rows = ArrowRows(rows)
    if hasattr(rows, "hash_contents"):
        known: str | None = rows.hash_contents()
        return known
    if not isinstance(rows, list | tuple):
        return None
    digest = hashlib.sha256()
    try:
        for row in rows:
            digest.update(json.dumps(row).encode() + b"\n")
    except (TypeError, ValueError):  # an object that JSON has no words for
        return None
    return digest.hexdigest()


def join_hashes(hashes: Iterable[str | None], how: str | bytes = "") -> str | None:
    """Return a hash of rows that are put together of others, or None if one of theirs is unknown.

    Args:
        hashes: In order.
        how: They are put together, where their order does not say it.
    """
    known = list(hashes)
    if None in known:
        return None
    digest = hashlib.sha256(" ".join(map(str, known)).encode() + b"\n")
    digest.update(how.encode() if isinstance(how, str) else how)
    return digest.hexdigest()

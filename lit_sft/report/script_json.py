"""JSON that can stand inside of a `script` element, whatever its texts say."""

import json
from typing import Any


def to_json(data: Any) -> str:
    """Return JSON without a character that HTML or a script would take for its own."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text

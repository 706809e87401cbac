"""JSON that can stand inside of a `script` element, whatever its texts say."""

import json


def to_json(data: object) -> str:
    """Return JSON without a character that HTML or a script would take for its own."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # without which nothing there begins or ends

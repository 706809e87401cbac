"""How many conversations with ten tools and a call are encoded in a CPU second?

Each row has tools of its own, about 3,300 characters of JSON, and four turns: a question, a call,
its result and an answer. The masks and the calls are proven. One thread:
`RAYON_NUM_THREADS=1 python tests/benchmarks/tool_rows.py`.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "unit" / "data"))

from tool_families import TOOL_FAMILIES, WORDS, load_core, template_file

from lit_sft import load_tokenizer
from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.row_policy import RowPolicy

ROWS, ROUNDS = 400, 3


def make_tool(draw: random.Random, number: int) -> dict[str, Any]:
    """Return a tool of two parameters."""
    about = f"The {draw.choice(WORDS)} of the {draw.choice(WORDS)}."
    properties = {f"argument_{i}": {"type": "string", "description": about} for i in range(2)}
    parameters = {"type": "object", "properties": properties, "required": ["argument_0"]}
    about = f"Finds the {draw.choice(WORDS)} of a {draw.choice(WORDS)} by {number}."
    function = {"name": f"tool_{number}", "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


def make_row(draw: random.Random, number: int) -> list[Any]:
    """Return a conversation in which one of ten tools is called."""

    def say(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    arguments = {"argument_0": say(4), "argument_1": "x"}
    call = {"id": f"c{number:08d}", "function": {"name": "tool_3", "arguments": arguments}}
    tools = [make_tool(draw, i) for i in range(10)]
    return [
        {"role": "user", "content": f"What is the {say(12)}?", "tools": tools},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"result": say(10)})},
        {"role": "assistant", "content": f"It is {say(15)}."},
    ]


def main() -> None:
    """Print the best of some rounds for each family."""
    draw = random.Random(0)
    rows = [(f"row {number}", make_row(draw, number)) for number in range(ROWS)]
    for name in ("qwen25", "llama31", "mistral_tools"):
        family = TOOL_FAMILIES[name]
        with tempfile.TemporaryDirectory() as folder:
            load_core(family).save_pretrained(folder)
            tokenizer = load_tokenizer(folder, template_file(family))
        encode_rows(tokenizer, rows[:20], RowPolicy(8192))
        rates = []
        for _ in range(ROUNDS):
            start = time.process_time()
            encoded = encode_rows(tokenizer, rows, RowPolicy(8192))
            rates.append(ROWS / (time.process_time() - start))
        mean = sum(encoded.lengths()) / len(encoded)
        print(f"{name:<14} {max(rates):>5.0f} rows a CPU second, {mean:,.0f} tokens a row")


if __name__ == "__main__":
    main()

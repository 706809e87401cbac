"""The script for a GPU works, as far as a CPU can tell."""

import json
import runpy
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("speed.py")


def test_dry_run_prints_a_table_and_a_profile(tiny_base, tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    generator = torch.Generator().manual_seed(0)
    with rows.open("w") as file:
        for length in range(10, 74):
            ids = torch.randint(1000, (length,), generator=generator).tolist()
            labels = [-100] * 5 + ids[5:]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    options = ["--config", str(tiny_base), "--rows", str(rows), "--steps", "1", "--tiny"]
    options += ["--arms", "plain", "eager", "lean"]  # compiling takes a minute
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(SCRIPT))["main"]()
    printed = capsys.readouterr().out
    for arm in ("plain", "eager", "lean"):
        row = next(line for line in printed.splitlines() if line.startswith(f"| {arm} |"))
        _, _, seconds, tokens, *_ = (cell.strip() for cell in row.split("|"))
        assert float(seconds.split()[0]) > 0
        assert int(tokens.replace(",", "")) > 0
        assert f"{arm}: what took longest in one step" in printed
    assert "`aten::mm`" in printed

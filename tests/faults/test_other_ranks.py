"""A run that goes on with another number of ranks: the same windows, to rounding."""

from pathlib import Path

import pytest
from command import ROOT, lit_sft
from safetensors.torch import load
from test_interrupted_runs import make_config, read_result
from test_two_ranks_interrupted import TWO_RANKS, send


def fit(folder: Path, base: Path, *arguments: object):
    """Go on with a run that a signal ends in its second step, and another in its fourth."""
    config = make_config(base, send(1, 15) + send(3, 2)).replace("dropout: 0.1", "dropout: 0")
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config)
    of_ranks = "ddp" in arguments
    env = {"PYTHONPATH": f"{Path(__file__).parent}:{ROOT}", "LIT_SFT_CACHE": str(folder / "cache")}
    options = ("--config", "config.yaml", "--ckpt_path", "auto", "--trainer.precision", "32-true")
    return lit_sft("fit", *options, *arguments, cwd=folder, env=env, of_ranks=of_ranks)


@pytest.mark.timeout(1800)
def test_two_then_one_then_two_ranks_equal_one(tiny_base, tmp_path):
    """Six steps of 8 rows, without dropout: rank by rank, it would draw other numbers."""
    alone, folder = ("--data.accumulate_grad_batches", 4), tmp_path / "shared"
    for mark in ("signal15", "signal2"):
        (tmp_path / "whole" / "run").mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / "run" / f".struck-{mark}-rank0-0").touch()
    assert fit(tmp_path / "whole", tiny_base, *alone).status == 0
    first, second, third = (fit(folder, tiny_base, *x) for x in (TWO_RANKS, alone, TWO_RANKS))
    assert (first.status, second.status, third.status) == (143, 130, 0), third.stderr
    told = [outcome.stdout + outcome.stderr for outcome in (first, second, third)]
    assert "trainer.devices was" not in told[0]
    assert "trainer.devices was 2, is now 1: the run goes on with the same windows" in told[1]
    assert told[2].count("trainer.devices was 1, is now 2: the run goes on") == 1
    assert "dropout" not in told[2]
    adapter, rows = read_result(folder)
    whole, whole_rows = read_result(tmp_path / "whole")
    for row, other in zip(rows, whole_rows, strict=True):
        figures = {k: float(v) for k, v in other.items() if v}
        assert {k: float(v) for k, v in row.items() if v} == pytest.approx(figures, rel=1e-5)
    ours, theirs = (load(x["adapter_model.safetensors"]) for x in (adapter, whole))
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= 1e-4 * theirs[name].norm() + 1e-7, name

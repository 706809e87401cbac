"""Two sources in one run: their shares are printed, and each has a validation loss of its own."""

import csv
import json

import pytest
from command import lit_sft_in_process

CONFIG = """
model: {base_model: lit_sft/tiny}
data:
  task:
    class_path: lit_sft.Mixture
    init_args:
      tasks:
        - {class_path: lit_sft.ChatFile, init_args: {path: capitals.jsonl}}
        - {class_path: lit_sft.WordProblems, init_args: {train_rows: 30}}
      weights: [1, 3]
      stopping_strategy: all_exhausted
  val_rows: 12
trainer:
  {default_root_dir: run, max_steps: 2, val_check_interval: 2, accelerator: cpu,
   precision: 32-true}
"""


@pytest.fixture
def folder(tmp_path):
    rows = [{"question": f"Capital of land {n}?", "answer": f"City {n}"} for n in range(20)]
    (tmp_path / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_a_mixture_trains_and_is_measured_by_source(folder):
    outcome = lit_sft_in_process("fit", "--config", "config.yaml", cwd=folder)
    assert outcome.status == 0, outcome.stderr
    table = [line.split() for line in outcome.stdout.splitlines() if line.count("%") == 2]
    sources = [x for x in table if len(x) == 5]
    assert (
        {x[0] for x in sources[:2]} == {x[0] for x in sources[2:]} == {"capitals", "WordProblems"}
    )
    with (folder / "run" / "logs" / "metrics.csv").open(newline="") as file:
        figures = {k: float(v) for k, v in list(csv.DictReader(file))[-1].items() if v}
    tokens = {x[0]: int(x[3]) for x in sources[2:]}
    total = sum(figures[f"val/loss/{name}"] * count for name, count in tokens.items())
    assert figures["val/loss"] == pytest.approx(total / sum(tokens.values()), rel=1e-5)
    assert figures["val/loss/capitals"] != pytest.approx(figures["val/loss"], rel=1e-3)

    options = ("--config", "config.yaml", "--ckpt_path", "last")
    alone = lit_sft_in_process("validate", *options, cwd=folder)
    assert alone.status == 0, alone.stderr
    assert str(figures["val/loss"])[:6] in alone.stdout
    assert "val/loss/capitals" in alone.stdout


def test_weights_that_do_not_match(folder):
    outcome = lit_sft_in_process(
        "fit", "--config", "config.yaml", "--data.task.init_args.weights=[1]", cwd=folder
    )
    assert outcome.status == 2
    assert "has to have one weight for each of the 2 tasks" in " ".join(outcome.stderr.split())
    assert "Traceback" not in outcome.stderr

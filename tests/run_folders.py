"""Folders as a run leaves them, written without training."""

import json

CONFIG = """\
seed_everything: 0
trainer:
  default_root_dir: {root}
  max_steps: {total}
model:
  base_model: lit_sft/tiny
  learning_rate: {rate}
  max_grad_norm: 1.0
data:
  task:
    class_path: {task}
    init_args:
      train_rows: 4000
"""


def make_run(
    root, steps=20, total=20, task="lit_sft.WordProblems", rate=0.002, how="finished", answers=()
):
    """Write a run that was evaluated after its first and its last step; return its folder.

    `answers` are dictionaries as `lit_sft.run.answer_file` keeps them; without, there are four rows
    of which one is lost and two are won.
    """
    (root / "logs").mkdir(parents=True)
    text = CONFIG.format(root=root, total=total, task=task, rate=rate)
    (root / "config.yaml").write_text(text)
    trained = ("loss", "learning_rate", "tokens_per_second", "grad_norm")
    columns = [*(f"train/{name}" for name in trained), "val/exact_match", "val/loss"]
    lines = [",".join(["step", *columns])]
    for step in range(steps + 1):
        trained = (
            f"{2 / step},{rate * (1 - step / total)},{1000 + step},{0.5 + step % 3}"
            if step
            else ",,,"
        )
        measured = {0: "0.25,2", steps: "0.5,0.1"}.get(step, ",")
        lines.append(f"{step},{trained},{measured}")
    (root / "logs" / "metrics.csv").write_text("\n".join(lines) + "\n")
    given = answers or [
        answer(step, row, verdict, output=f"the answer {row + step}")
        for step, verdicts in ((0, "rwww"), (steps, "wrrw"))
        for row, verdict in enumerate(verdicts)
    ]
    write_lines(root / "logs" / "answers.jsonl", given)
    begin = {
        "event": "begin", "time": "2026-01-01T10:00:00+00:00", "step": 0, "total_steps": total,
        "steps_per_epoch": 10, "command": "lit-sft fit --config x.yaml", "versions": {"torch": "2"},
        "data": {"train": {"split": "train", "rows": 4000, "kept": 4000, "dropped": 0}},
    }  # fmt: skip
    end = {"event": "end", "time": "2026-01-01T10:01:30+00:00", "step": steps, "how": how}
    write_lines(root / "logs" / "sessions.jsonl", [begin, end] if how else [begin])
    return root


def answer(step, row, verdict, output="1", **others):
    """An answer by the first letter of its verdict, or by a score such as `f1 0.5`."""
    named = {"r": "right", "w": "wrong", "n": "no answer"}.get(verdict, verdict)
    values = {"step": step, "row": row, "question": f"question {row}", "reference": f"{row}"}
    return values | {"output": output, "verdict": named, "finished": True} | others


def write_lines(path, records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))

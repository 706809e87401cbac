"""Exact match while training: when it runs, what it logs, and that it leaves no trace."""

import csv
import json
import shutil

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_sft import ChatTask, GenerationEval, Lora, SFTDataModule, SFTModule
from lit_sft.callbacks.progress import Progress
from lit_sft.errors import InputError
from lit_sft.run.metrics_file import MetricsFile


class Echo(ChatTask):
    """Graded by a rule that even a random model meets now and then: the output's length is even."""

    def rows(self, split):
        return None if split == "val" else [{"n": n} for n in range(48)]

    def messages(self, row):
        return [
            {"role": "user", "content": f"say {row['n']}"},
            {"role": "assistant", "content": str(row["n"])},
        ]

    def grade(self, row, text):
        return None if "?" in text else len(text) % 2 == 0


class Ungraded(Echo):
    grade = ChatTask.grade


def train(base, root, callbacks, steps=4, task=None, logger=True, val_rows=12, **module_args):
    module = SFTModule(
        str(base), lora=Lora(r=4, alpha=8), learning_rate=1e-2, max_new_tokens=6, **module_args
    )
    data = SFTDataModule(task or Echo(), val_rows=val_rows, batch_size=2, accumulate_grad_batches=2)
    trainer = pl.Trainer(
        max_steps=steps,
        default_root_dir=root,
        accelerator="cpu",
        precision="32-true",
        callbacks=callbacks,
        logger=MetricsFile(root) if logger else False,
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_progress_bar=any(isinstance(c, Progress) for c in callbacks),
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )
    trainer.fit(module, data)
    return trainer, module, data


def read_metrics(root):
    with (root / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_runs_before_the_first_step_every_n_and_at_the_end(tiny_base, tmp_path):
    train(tiny_base, tmp_path, [GenerationEval(every_n_steps=3, samples=2)], steps=5)
    rows = [row for row in read_metrics(tmp_path) if row["val/exact_match"]]
    assert [row["step"] for row in rows] == ["0", "3", "5"]
    for row in rows:
        assert 0 <= float(row["val/exact_match"]) <= 1
        assert float(row["val/unfinished"]) + float(row["val/no_answer"]) >= 0
        assert float(row["val/eval_seconds"]) > 0
    lines = (tmp_path / "logs" / "generations.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["step"] for sample in samples] == [0, 0, 3, 3, 5, 5]
    assert set(samples[0]) >= {"question", "reference", "output", "verdict", "finished"}
    assert samples[0]["question"].startswith("say ")


def test_without_a_rhythm_it_runs_after_each_epoch(tiny_base, tmp_path):
    # 36 training rows are windows of 4: nine a epoch
    train(tiny_base, tmp_path, [GenerationEval()], steps=20)
    steps = [row["step"] for row in read_metrics(tmp_path) if row["val/exact_match"]]
    assert steps == ["0", "9", "18", "20"]


def test_it_leaves_no_trace_in_training(tiny_base, tmp_path):
    outcomes = []
    for name, callbacks in {"without": [], "with": [GenerationEval(every_n_steps=1)]}.items():
        _, module, _ = train(tiny_base, tmp_path / name, callbacks)
        losses = [row["train/loss"] for row in read_metrics(tmp_path / name) if row["train/loss"]]
        outcomes.append((losses, module.trained_parameters, module.model.training))
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][2] == outcomes[1][2]
    for name, parameter in outcomes[0][1].items():
        assert torch.equal(parameter, outcomes[1][1][name])


def test_the_best_checkpoint_is_chosen_by_exact_match(tiny_base, tmp_path):
    best = ModelCheckpoint(
        monitor="val/exact_match", mode="max", every_n_train_steps=1, filename="best-{step}"
    )
    train(tiny_base, tmp_path, [GenerationEval(every_n_steps=1), best])
    rows = [row for row in read_metrics(tmp_path) if row["val/exact_match"] and row["step"] != "0"]
    assert best.best_model_score == pytest.approx(
        max(float(row["val/exact_match"]) for row in rows)
    )
    assert (tmp_path / "checkpoints").is_dir()


def test_all_rows_some_rows_and_another_task(tiny_base, tmp_path):
    for rows, expected in ((0, 12), (5, 5)):
        callback = GenerationEval(eval_rows=rows)
        train(tiny_base, tmp_path / str(rows), [callback], steps=1)
        assert len(callback.prompts) == expected
    train(tiny_base, tmp_path / "other", [GenerationEval(task=Echo())], steps=1, task=Ungraded())


def test_test_gives_an_interval(tiny_base, tmp_path):
    callback = GenerationEval()
    trainer, module, data = train(tiny_base, tmp_path, [callback], steps=1, logger=False)
    (figures,) = trainer.test(module, data, verbose=False)
    assert len(callback.prompts) == 48
    assert (
        figures["test/exact_match_low"]
        <= figures["test/exact_match"]
        <= figures["test/exact_match_high"]
    )


def test_predict_answers_every_row(tiny_base, tmp_path):
    trainer, module, data = train(tiny_base, tmp_path, [], steps=1, logger=False)
    (answers,) = trainer.predict(module, data)
    assert len(answers) == 48
    assert all(len(answer.token_ids) <= 6 for answer in answers)


def test_every_end_token_of_the_model_ends_an_answer(tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    # Whatever a random model says, one of the two files calls it an end.
    for name, stops in (("config", range(130)), ("generation_config", range(130, 262))):
        path = base / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [*stops]}))
    callback = GenerationEval(every_n_steps=1)
    trainer, module, data = train(base, tmp_path, [callback], steps=1)
    assert {row["val/unfinished"] for row in read_metrics(tmp_path)} - {""} == {"0"}
    (figures,) = trainer.test(module, data, verbose=False)
    assert figures["test/unfinished"] == 0
    (answers,) = trainer.predict(module, data)
    assert {(*answer.token_ids, answer.finished) for answer in answers} == {(True,)}


def test_nan_logits_are_an_error_not_a_score(tiny_base, tmp_path):
    trainer, module, data = train(tiny_base, tmp_path, [], steps=1, logger=False)
    next(iter(module.trained_parameters.values())).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        trainer.predict(module, data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"max_batch_tokens": -1}, "max_batch_tokens must be positive"),
        ({"every_n_steps": 0}, "every_n_steps must be positive"),
        ({"eval_rows": -1}, "eval_rows must not be negative"),
        ({"num_shots": -1}, "num_shots must not be negative"),
        ({"samples": -1}, "samples must not be negative"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        GenerationEval(**arguments)


def test_a_task_that_cannot_grade_is_found_before_the_model_loads(tiny_base, tmp_path):
    with pytest.raises(InputError, match="Ungraded does not grade answers"):
        train(tiny_base, tmp_path, [GenerationEval()], task=Ungraded())


def test_an_empty_slice_is_refused(tiny_base, tmp_path):
    module = SFTModule(str(tiny_base))
    data = SFTDataModule(Echo(), val_rows=0)
    trainer = pl.Trainer(
        max_steps=1, callbacks=[GenerationEval()], logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    with pytest.raises(InputError, match="val_rows=0 leaves no rows to evaluate on"):
        trainer.fit(module, data)


def test_every_answer_is_kept_and_the_lines_say_what_was_measured(tiny_base, tmp_path, capsys):
    train(tiny_base, tmp_path, [GenerationEval(every_n_steps=3, samples=2), Progress()])
    kept = [json.loads(x) for x in (tmp_path / "logs" / "answers.jsonl").read_text().splitlines()]
    assert [(x["step"], x["row"]) for x in kept] == [(s, r) for s in (0, 3, 4) for r in range(12)]
    assert ["tokens" in x for x in kept if x["output"]] == [
        x["row"] < 2 for x in kept if x["output"]
    ]
    for said in [x for x in kept if "tokens" in x]:
        assert "".join(piece for piece, _ in said["tokens"]) == said["output"]
        assert all(0 <= p <= 1 for _, p in said["tokens"])
    right = [sum(x["verdict"] == "right" for x in kept if x["step"] == s) / 12 for s in (0, 3, 4)]
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("step ")]
    told = [line.partition("exact_match ")[2].split("  ")[0] for line in lines]
    assert told == [f"{right[0]:.3f} (step 0)", "", f"{right[1]:.3f}", f"{right[2]:.3f}"]
    assert [" left " in line for line in lines] == [True, True, True, False]


class Deaf(Echo):
    """Finds no answer in anything."""

    def rows(self, split):
        return None if split == "val" else [{"n": n} for n in range(130)]

    def grade(self, row, text):
        return None


class Scored(Echo):
    def grade(self, row, text):
        return len(text) % 4 / 4


@pytest.mark.parametrize("rows", [63, 64])
def test_a_grader_that_never_matches_in_64_rows_is_said_aloud(tiny_base, tmp_path, recwarn, rows):
    callback = GenerationEval(every_n_steps=1, eval_rows=rows)
    train(tiny_base, tmp_path, [callback], steps=2, task=Deaf(), val_rows=80)
    said = [str(x.message) for x in recwarn if "the grader" in str(x.message)]
    assert len(said) == (2 if rows == 64 else 0)  # of the base, and once of what is trained
    for step, text in enumerate(said):
        expected = f"GenerationEval, after step {step}: the grader 'Deaf' finds no answer in any of"
        assert text.startswith(f"{expected} 64 answers: one is ")


def test_checkpoints_are_kept_by_a_score(tiny_base, tmp_path):
    best = ModelCheckpoint(monitor="val/f1", mode="max", every_n_train_steps=1)
    train(tiny_base, tmp_path, [GenerationEval(every_n_steps=1), best], task=Scored())
    rows = [row for row in read_metrics(tmp_path) if row["val/f1"] and row["step"] != "0"]
    assert best.best_model_score == pytest.approx(max(float(row["val/f1"]) for row in rows))
    assert "val/exact_match" not in rows[0]
    lines = (tmp_path / "logs" / "generations.jsonl").read_text().splitlines()
    assert {json.loads(line)["verdict"][:3] for line in lines} == {"f1 "}


@pytest.mark.parametrize(
    ("task", "monitor"),
    [(Scored(), "val/exact_match"), (Echo(), "val/f1"), (Echo(), "val/exact_match/chats")],
)
def test_a_figure_that_the_graders_do_not_give_is_not_waited_for(
    tiny_base, tmp_path, task, monitor
):
    best = ModelCheckpoint(monitor=monitor, mode="max", every_n_train_steps=1)
    with pytest.raises(InputError, match=f"ModelCheckpoint.monitor: {monitor} is not measured; "):
        train(tiny_base, tmp_path, [GenerationEval(every_n_steps=1), best], task=task)

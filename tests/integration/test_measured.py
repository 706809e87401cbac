"""`test` and `predict` as one works with them: which weights, what of, and a file that stays."""

import json
from functools import partial

import pytest
from command import lit_sft, lit_sft_in_process
from small_run import fit_options

from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.run.checkpoint_io import AtomicCheckpointIO

CALLBACKS = [
    {"class_path": "lit_sft.GenerationEval", "init_args": {"every_n_steps": 2}},
    {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "monitor": "val/exact_match",
            "mode": "max",
            "every_n_train_steps": 2,
            "filename": "best-{step}",
        },
    },
]


def options(folder):
    return [
        *fit_options("lit_sft/tiny", folder),
        *("--data.task.test_rows", "6", "--model.max_new_tokens", "8"),
        f"--trainer.callbacks={json.dumps(CALLBACKS)}",
    ]


@pytest.fixture(scope="module")
def graded_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graded") / "run"
    outcome = lit_sft_in_process("fit", *options(folder))
    assert outcome.status == 0, outcome.stderr
    return folder


def predict(run, *more):
    outcome = lit_sft_in_process("predict", *options(run), *more)
    lines = (run / "predictions.jsonl").read_text().splitlines() if outcome.status == 0 else []
    return outcome, [json.loads(line) for line in lines]


def test_a_test_says_and_writes_what_it_measured_of_which_weights(graded_run):
    (best,) = (graded_run / "checkpoints").glob("best-*.ckpt")
    step = AtomicCheckpointIO().load_checkpoint(best)["global_step"]
    outcome = lit_sft_in_process("test", *options(graded_run), "--ckpt_path", "best")
    assert outcome.status == 0, outcome.stderr
    assert f"measuring {best}, after {step} steps" in outcome.stdout
    written = graded_run / "measured" / f"test-step-{step}.json"
    assert f"wrote {written}" in outcome.stdout
    record = json.loads(written.read_text())
    about = json.loads((graded_run / "adapter" / "lit_sft.json").read_text())
    for name in ("base_model", "base_sha256", "template_sha256", "step"):
        assert record[name] == about[name]
    assert record["checkpoint"] == best.name
    assert record["data"]["rows"] == 6
    assert record["data"]["train_rows_in_test"] == 0
    assert len(record["data"]["sha256"]) == 64
    low, high = record["exact_match_95"]
    assert low <= record["figures"]["exact_match"] <= high
    assert record["figures"]["loss"] > 0
    assert str(graded_run.parent) not in written.read_text()


def test_the_base_as_it_is_has_a_file_of_its_own(graded_run):
    outcome = lit_sft_in_process("test", *options(graded_run))
    assert "measuring the base lit_sft/tiny as it is" in outcome.stdout
    record = json.loads((graded_run / "measured" / "test-base.json").read_text())
    assert (record["checkpoint"], record["step"]) == (None, None)


def test_the_best_of_a_run_that_kept_none_is_refused(tmp_path):
    plain = fit_options("lit_sft/tiny", tmp_path / "run")
    for before in ("there is no checkpoint", "has no best checkpoint: none was kept by a figure"):
        outcome = lit_sft_in_process("test", *plain, "--ckpt_path", "best")
        assert outcome.status == 2
        (line,) = (x for x in outcome.stderr.splitlines() if x.startswith("error: "))
        assert before in line
        assert lit_sft_in_process("fit", *plain, "--ckpt_path", "auto").status == 0


def test_predictions_have_verdicts_and_those_of_before_are_kept(graded_run):
    outcome, of_test = predict(graded_run, "--ckpt_path", "best")
    assert outcome.status == 0, outcome.stderr
    assert "answering with " in outcome.stdout
    assert len(of_test) == 6
    for line in of_test:
        assert list(line) == ["row", "prompt", "answer", "verdict", "reference", "finished"]
        assert [message["role"] for message in line["prompt"]] == ["user"]
        assert line["verdict"] in ("right", "wrong", "no answer")
        assert "####" in line["reference"]
    before = (graded_run / "predictions.jsonl").read_bytes()
    earlier = {*graded_run.glob("predictions-*.jsonl")}  # of tests that came before
    outcome, of_val = predict(graded_run, "--data.predict_on", "val")
    assert len(of_val) == 4
    assert "kept the predictions of before as" in outcome.stdout
    (kept,) = {*graded_run.glob("predictions-*.jsonl")} - earlier
    assert kept.read_bytes() == before


def test_a_file_of_prompts_is_answered_with_answers_or_without(graded_run, tmp_path):
    rows = [{"question": "What is 1 + 1?"}, {"question": "2 + 2?", "answer": "4 #### 4"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome, lines = predict(graded_run, "--data.predict_on", path)
    assert outcome.status == 0, outcome.stderr
    assert [line["reference"] for line in lines] == [None, "4 #### 4"]
    assert lines[0]["verdict"] is None
    assert lines[1]["verdict"] in ("right", "wrong", "no answer")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data.predict_on", "tset"], "expected train, val, test or a file, and there is no"),
        (["--data.predict_on", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'"),
    ],
)
def test_prompts_that_are_nowhere_are_a_line(graded_run, arguments, says):
    outcome, _ = predict(graded_run, *arguments)
    assert outcome.status == 2
    (line,) = (x for x in outcome.stderr.splitlines() if x.startswith("error: "))
    assert says in line


def test_answers_stop_where_the_template_ends_a_turn(graded_run):
    tokenizer = load_tokenizer("lit_sft/tiny")
    said = json.loads((graded_run / "adapter" / "generation_config.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") in said["eos_token_id"]
    assert said["do_sample"] is False


TWO_RANKS = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.mark.parametrize("command", ["predict", pytest.param("test", marks=pytest.mark.slow)])
def test_two_ranks_share_the_rows_and_leave_what_one_does(graded_run, command):
    """Seven rows: four for the first, three for the second; predictions have the same bytes."""
    words = [command, *options(graded_run), "--data.task.test_rows", "7", "--ckpt_path", "last"]
    outcomes, left = [], []
    for start, more in ((lit_sft_in_process, ()), (partial(lit_sft, of_ranks=True), TWO_RANKS)):
        outcome = start(*words, *more)
        assert outcome.status == 0, outcome.stderr
        outcomes.append(outcome)
        if command == "predict":
            left.append((graded_run / "predictions.jsonl").read_bytes())
        else:
            left.append(json.loads((graded_run / "measured" / "test-step-4.json").read_text()))
    assert outcomes[1].stderr == ""
    if command == "predict":
        assert left[0] == left[1]
        assert len(left[0].splitlines()) == 7
        assert outcomes[1].stdout.count("wrote ") == 1
        return
    figures = [record.pop("figures") for record in left]
    del figures[0]["eval_seconds"], figures[1]["eval_seconds"]
    assert figures[1] == pytest.approx(figures[0], rel=1e-6)
    assert left[0] == left[1]

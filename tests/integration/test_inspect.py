"""`lit-sft inspect` as a user runs it."""

import json
import subprocess
import sys

import pytest
from command import ROOT, lit_sft

QUICKSTART = ("--config", "configs/quickstart.yaml", "--data.task.init_args.train_rows", 200)
BROKEN = """
from lit_sft import ChatTask

class Broken(ChatTask):
    def rows(self, split):
        return [{"n": n} for n in range(40)] if split == "train" else None

    def messages(self, row):
        answers = {7: None, 11: ["list"], 20: "\\ud800"}
        if row["n"] == 30:
            raise KeyError("gone")
        return [
            {"role": "user", "content": f"{row['n']}?"},
            {"role": "assistant", "content": answers.get(row["n"], "yes")},
        ]
"""


def test_the_quickstart_as_text_and_as_a_page(tmp_path):
    page = tmp_path / "new" / "page.html"
    outcome = lit_sft("inspect", *QUICKSTART, "--html", page)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "{<|start_header_id|>}assistant{<|end_header_id|>}" in outcome.stdout
    assert "train     200    200        0 " in outcome.stdout
    assert f"every mask is proven\nwrote {page}\n" in outcome.stdout
    assert page.read_text().count("<article>") == 3


def test_json_is_all_of_stdout_and_the_options_of_fit_are_understood(tmp_path):
    outcome = lit_sft(
        *("inspect", *QUICKSTART, "--json", "--split", "val", "--random", 2),
        *("--data.val_rows", 9, "--trainer.max_steps", 3, "--ckpt_path", "last"),
        *("--trainer.callbacks+=lit_sft.HubUpload", "--trainer.callbacks.repo_id=me/x"),
        *("--model.lora.r", 4, "--seed_everything", 1),
    )
    assert (outcome.status, outcome.stderr) == (0, "")
    report = json.loads(outcome.stdout)
    assert report["splits"]["val"]["ledger"]["kept"] == 9
    assert [row["split"] for row in report["rows"]] == ["val", "val"]
    for row in report["rows"]:
        ids, targets = row["input_ids"], row["targets"]
        assert targets[-1] == -100
        assert {t for t, following in zip(targets, ids[1:], strict=False) if t != following} == {
            -100
        }


def test_the_config_that_a_run_leaves_is_understood(tmp_path):
    printed = lit_sft("fit", *QUICKSTART, "--print_config")
    (tmp_path / "config.yaml").write_text(printed.stdout)
    outcome = lit_sft("inspect", "--config", tmp_path / "config.yaml", "--row", 17, "--json")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert [row["name"] for row in json.loads(outcome.stdout)["rows"]] == ["train row 17"]


def test_all_rows_that_fail_are_named(tiny_base, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    outcome = lit_sft(
        *("inspect", "--data.task", "broken.Broken", "--data.val_rows", 5, "--row", 11),
        *("--model.base_model", tiny_base),
        cwd=tmp_path,
    )
    assert (outcome.status, outcome.stderr) == (1, "")
    assert "train row 11: fails: message 1 (assistant): content must be a string" in outcome.stdout
    failed = outcome.stdout.split("4 rows fail; a run would stop at the first of them\n")[1]
    named = [line.split(":")[0].strip() for line in failed.splitlines()]
    assert sorted(named) == ["train row 11", "train row 20", "train row 30", "train row 7"]
    assert "train      31" in outcome.stdout or "train      32" in outcome.stdout


def test_a_row_of_several_files_is_named_by_its_file_too(tmp_path):
    good, bad = ({"question": f"{n}?", "answer": n and "yes"} for n in (1, 0))
    for name, rows in {"a": [good] * 3, "b": [good, good, {**bad, "answer": "\ud800"}]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (
        *("inspect", "--model.base_model", "lit_sft/tiny", "--data.val_rows", 0),
        *("--data.task", "lit_sft.ChatFile", "--data.task.path", "*.jsonl", "--row"),
    )
    outcome = lit_sft(*options, 5, cwd=tmp_path)
    assert "train row 5 (b.jsonl row 2): fails: message 1 (assistant): character" in outcome.stdout
    assert lit_sft(*options, 2, cwd=tmp_path).stdout.count("train row 2 (a.jsonl row 2)") >= 1
    sliced = lit_sft(*options, 1, "--data.task.splits", "{train: 'train[1:]'}", cwd=tmp_path)
    assert "train row 1 (a.jsonl row 2): " in sliced.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data.max_lenght", "5"], "Did you mean 'data.max_length'?"),
        (["--data.max_length", "5"], "all 200 rows, from train row 0 on"),
        (["--row", "1", "--random", "1"], "exclude each other"),
        (["--row", "200"], "no row 200 in the split train"),
        (["--html", "configs"], "'configs' is a folder"),
        (["--model.base_model", "./nowhere"], "there is no folder './nowhere'"),
        (["--split", "tset"], "Did you mean 'test'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_option(arguments, says):
    outcome = lit_sft("inspect", *QUICKSTART, *arguments)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert says in " ".join(outcome.stderr.split())
    assert "Traceback" not in outcome.stderr


def test_what_the_template_does_not_write_fails_or_is_counted(tmp_path):
    ask, say = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    rows = [[ask, say]] * 12 + [[ask | {"name": "Ann"}, say | {"reasoning_content": "<why>"}]]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in rows]
    (tmp_path / "chats.jsonl").write_text("".join(lines))
    arguments = (
        *("inspect", "--model.base_model", "lit_sft/tiny", "--data.task", "lit_sft.ChatFile"),
        *("--data.task.path", tmp_path / "chats.jsonl", "--data.val_rows", 0),
    )
    outcome = lit_sft(*arguments)
    assert (outcome.status, outcome.stderr) == (1, "")
    assert "train row 12: message 0 (user): the chat template does not write" in outcome.stdout
    page = tmp_path / "page.html"
    for as_json in ([], ["--json"]):  # encoded, and then out of the cache
        outcome = lit_sft(*arguments, "--data.on_lost_field", "drop", "--html", page, *as_json)
        assert outcome.status == 0, outcome.stderr
        assert "assistant.reasoning_content</th><td>1</td>" in page.read_text()
        counted = {"assistant.reasoning_content": 1, "user.name": 1}
        if as_json:
            splits = json.loads(outcome.stdout)["splits"]
            assert splits["train"]["ledger"]["lost_fields"] == counted
        else:
            said = "does not write them: 1 assistant.reasoning_content, 1 user.name"
            assert said in " ".join(outcome.stdout.split())


def test_help_and_the_printed_config_are_on_stdout():
    assert "--random" in lit_sft("inspect", "--help").stdout
    config = ("--config", "configs/quickstart.yaml", "--print_config")
    assert "task:" in lit_sft("inspect", *config).stdout


def test_it_needs_neither_torch_nor_lightning():
    code = (
        "import sys; from lit_sft.inspect.command import run; run(sys.argv[1:]);"
        "late = {'torch', 'lightning', 'peft', 'bitsandbytes', 'datasets', 'wandb'};"
        "sys.exit(' '.join(late & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", code, "inspect", *map(str, QUICKSTART), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gsm8k_with_the_real_tokenizer(shared):
    outcome = lit_sft(
        *("inspect", "--config", "configs/gsm8k_qlora.yaml", "--json"),
        *("--data.task.init_args.path", shared / "gsm8k"),
        *("--model.base_model", shared / "llama-3.2-3b", "--row", 0),
    )
    assert (outcome.status, outcome.stderr) == (0, "")
    report = json.loads(outcome.stdout)
    rows = {split: found["ledger"]["kept"] for split, found in report["splits"].items()}
    assert rows == {"train": 7217, "val": 256, "test": 1319}
    assert {split: found["rows"] for split, found in report["repeats"].items()} == {
        "train": 0, "val": 0, "test": 0,
    }  # fmt: skip
    train = report["splits"]["train"]
    assert (train["percentiles"]["p99"], train["percentiles"]["max"]) == (338, 469)
    assert train["padding"]["padded, in random order"] == pytest.approx(0.27, abs=0.02)
    (row,) = report["rows"]
    learnt = [
        text for text, target in zip(row["texts"][1:], row["targets"], strict=False) if target >= 0
    ]
    assert "".join(learnt).startswith("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n")
    assert learnt[-1] == "<|eot_id|>"

"""`lit-sft push`, with the real client of the Hub against a server on the loopback interface."""

import json
from functools import partial

import pytest
from command import lit_sft, lit_sft_in_process
from hub_server import DROP, serve_hub
from huggingface_hub import ModelCard
from small_run import fit_options, isolated

TOKEN = "hf_" + "x" * 34
GRADING = [{"class_path": "lit_sft.GenerationEval", "init_args": {"every_n_steps": 4}}]


@pytest.fixture(scope="module")
def hub():
    with serve_hub() as server:
        yield server


@pytest.fixture(scope="module")
def tested_run(tmp_path_factory):
    """A run whose last weights were tested."""
    folder = tmp_path_factory.mktemp("tested") / "run"
    options = [
        *fit_options("lit_sft/tiny", folder),
        *("--data.task.test_rows", "4", "--model.max_new_tokens", "4"),
        f"--trainer.callbacks={json.dumps(GRADING)}",
    ]
    for command in (["fit", *options], ["test", *options, "--ckpt_path", "last"]):
        outcome = lit_sft_in_process(*command)
        assert outcome.status == 0, outcome.stderr
    return folder


@pytest.fixture(scope="module")
def push(hub, tmp_path_factory):
    """Run `push` with the server as the Hub."""
    environment = isolated(tmp_path_factory.mktemp("home"), HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    return partial(lit_sft, "push", imported_with=environment, timeout=120)


def refused(done, status=2):
    assert done.status == status, done
    said = [x for x in done.stderr.splitlines() if "the upload failed" not in x]
    assert len(said) == 1, said
    (line,) = said
    assert line.startswith("error: ")
    return line


def test_a_run_s_adapter_arrives_with_what_was_measured_and_nothing_else(
    hub, push, tested_run, tmp_path
):
    hub.faults["me/first commit"] = iter([500, DROP])
    (tested_run / "adapter" / "notes.md").write_text("not to be uploaded")
    done = push(tested_run, "me/first")
    assert done.status == 0, done.stderr
    assert done.stderr.count("the upload failed") == 2
    assert done.stdout == f"uploaded {tested_run / 'adapter'} to {hub.url}/me/first\n"
    assert hub.repositories["me/first"] is True, "must be private"
    files = hub.files["me/first"]
    assert "notes.md" not in files
    assert {"adapter_model.safetensors", "generation_config.json", "lit_sft.json"} <= files.keys()
    assert not any(TOKEN.encode() in content for content in files.values())
    text = files["README.md"].decode()
    card = ModelCard(text)
    measured = json.loads((tested_run / "measured" / "test-step-4.json").read_text())["figures"]
    figures = {x.metric_name: x.metric_value for x in card.data.eval_results}
    assert figures["test/exact_match"] == round(measured["exact_match"], 4)
    assert figures["test/loss"] == round(measured["loss"], 4)
    kept = json.loads((tested_run / "adapter" / "lit_sft.json").read_text())["metrics"]
    assert figures["val/exact_match"] == round(kept["val/exact_match"], 4)
    assert {x.dataset_split for x in card.data.eval_results} == {"validation", "test"}
    assert "max_steps: 4" in text
    sent = hub.requests.count("lfs")
    again = push(tested_run, "me/first", "--public")
    assert again.status == 0, again.stderr
    assert hub.requests.count("lfs") == sent, "what has arrived is not sent again"
    assert hub.files["me/first"]["README.md"].decode() == text, "no figure stands twice"
    assert hub.repositories["me/first"] is True


def test_figures_of_other_weights_stay_out_of_the_card(hub, push, tested_run, tmp_path):
    (tmp_path / "adapter").mkdir()
    for path in (tested_run / "adapter").iterdir():
        (tmp_path / "adapter" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "measured").mkdir()
    record = json.loads((tested_run / "measured" / "test-step-4.json").read_text())
    record["base_sha256"] = "0" * 64
    record["figures"]["exact_match"] = 0.123
    (tmp_path / "measured" / "test-step-4.json").write_text(json.dumps(record))
    assert push(tmp_path / "adapter", "me/other").status == 0
    assert "0.123" not in hub.files["me/other"]["README.md"].decode()


def test_an_export_is_uploaded_with_its_certificate(hub, push, tmp_path):
    export = tmp_path / "gguf"
    export.mkdir()
    expected = {"certificate.json", "lit_sft.json", "model.gguf", "Modelfile", "README.md"}
    for name in (*expected, "model.tmp"):
        (export / name).write_text("{}")
    done = push(export, "me/export", "--public")
    assert done.status == 0, done.stderr
    assert hub.repositories["me/export"] is False
    assert hub.files["me/export"].keys() == expected


def test_without_a_login_a_line_says_what_to_do(hub, push, tested_run, tmp_path):
    before = len(hub.requests)
    assert "log in with `hf auth login`" in refused(push(tested_run, "me/x", env={"HF_TOKEN": ""}))
    assert len(hub.requests) == before


def test_a_token_in_a_file_is_not_uploaded(hub, push, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "lit_sft.json").write_text(json.dumps({"token": TOKEN}))
    line = refused(push(tmp_path / "export", "me/leak"))
    assert "holds the token of your login" in line
    assert TOKEN not in line
    assert "me/leak" not in hub.files


def test_what_cannot_be_pushed_is_a_line(hub, push, tested_run, tmp_path):
    hub.faults["me/readonly create"] = iter([403])
    hub.faults["me/broken commit"] = iter([500] * 9)
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    (tmp_path / "unfinished" / "checkpoints" / "last.ckpt").touch()
    for arguments, says in {
        (tmp_path / "nowhere", "me/x"): "there is no folder",
        (tmp_path, "me/x"): "is neither a run's folder with an adapter/ nor",
        (tmp_path / "unfinished", "me/x"): "has not ended; end it with",
        (tested_run, "x"): "repo_id must read owner/name, got 'x'",
        (tested_run, "me/readonly"): "use a token with write access",
    }.items():
        assert says in refused(push(*arguments))
    line = refused(push(tested_run, "me/broken", "--retries", "1"), status=1)
    assert f"lit-sft push {tested_run / 'adapter'} me/broken" in line

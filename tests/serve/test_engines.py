"""What is exported, run by the engines that it is for: `make test-serve`.

The engines are in an environment of their own, whose Python `LIT_SFT_SERVE` names.
"""

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from command import ROOT, lit_sft_from_scratch

from lit_sft.cli.export import export_run, read_held_out
from lit_sft.export.certificate import generate
from lit_sft.export.formats_out import load_on_published
from lit_sft.export.trained_model import build_trained
from lit_sft.export.trained_run import TrainedRun, read_run
from lit_sft.types import Prompt

HERE = Path(__file__).parent
PYTHON = os.environ.get("LIT_SFT_SERVE", "")
BASE = ROOT / "lit_sft" / "toy" / "base"
TOKENS = 128
pytestmark = pytest.mark.skipif(not PYTHON, reason="the engines are run by `make test-serve`")


class Trained(NamedTuple):
    run: TrainedRun
    prompts: list[Prompt]
    grade: object
    answers: list[list[int]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    """The quickstart, and what PEFT answers in float32 to 64 held-out prompts."""
    folder = tmp_path_factory.mktemp("serve") / "run"
    config = ROOT / "configs" / "quickstart.yaml"
    options = ["--trainer.default_root_dir", folder, "--trainer.callbacks", "[]"]
    outcome = lit_sft_from_scratch("fit", "--config", config, *options)
    assert outcome.status == 0, outcome.stderr
    run = read_run(folder)
    held_out = read_held_out(run, 64)
    model, tokenizer = build_trained(run, torch.float32)
    answers = generate(model, tokenizer, held_out.prompts, run.stop_ids, TOKENS)
    return Trained(run, held_out.prompts, held_out.grade, answers)


def ask(script: str, trained: Trained, model: Path, adapter: Path | None = None) -> dict:
    """Return what an engine answers to the prompts' tokens, and to their messages."""
    asked = {
        "model": str(model),
        "adapter": adapter and str(adapter),
        "prompts": [prompt.input_ids for prompt in trained.prompts],
        "chats": [prompt.messages[:-1] for prompt in trained.prompts],
        "tokens": TOKENS,
    }
    command = [PYTHON, str(HERE / script)]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HOME")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
    try:
        stdout, stderr = process.communicate(json.dumps(asked), timeout=800)
    finally:
        with suppress(ProcessLookupError):  # a server that outlived its script
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, stderr[-3000:]
    return json.loads(stdout.splitlines()[-1])


def require_equal(trained: Trained, answers: list[list[int]], got: dict, least: float) -> None:
    """The tokens are PEFT's; the chat template that is served gives the same answers as text."""
    tokenizer, ends = trained.run.tokenizer, trained.run.stop_ids
    tokens = [[token for token in row if token not in ends] for row in got["tokens"]]
    total = sum(max(len(a), len(b)) for a, b in zip(tokens, answers, strict=True))
    pairs = zip(tokens, answers, strict=True)
    equal = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    assert equal >= least * total, f"{equal} of {total} tokens"
    texts = [tokenizer.decode(row) for row in answers]
    graded = zip(trained.prompts, texts, got["texts"], strict=True)
    right = [(trained.grade(p.record, a), trained.grade(p.record, b)) for p, a, b in graded]
    assert abs(sum(bool(a) for a, _ in right) - sum(bool(b) for _, b in right)) <= 1
    same = sum(a == b for a, b in zip(texts, got["texts"], strict=True))
    assert same >= least * len(texts) - (least < 1), f"{same} of {len(texts)} chats"


def test_llama_cpp_answers_with_both_files(trained, tmp_path):
    result = export_run(trained.run.folder.root, "gguf", tmp_path / "out")
    assert not result.shortfalls
    for kind, least in (("f16", 1.0), ("q8_0", 0.99)):
        (file,) = result.folder.glob(f"*{kind}.gguf")
        require_equal(trained, trained.answers, ask("llama_cpp_server.py", trained, file), least)


def test_vllm_answers_with_the_merged_folder(trained, tmp_path):
    result = export_run(trained.run.folder.root, "merged", tmp_path / "out", dtype="float32")
    assert not result.shortfalls
    require_equal(trained, trained.answers, ask("vllm_server.py", trained, result.folder), 1.0)


def test_vllm_answers_with_the_adapter(trained, tmp_path):
    result = export_run(trained.run.folder.root, "vllm", tmp_path / "out")
    model = load_on_published(trained.run, result.folder, torch.float32)
    ends = trained.run.stop_ids
    answers = generate(model, trained.run.tokenizer, trained.prompts, ends, TOKENS)
    got = ask("vllm_server.py", trained, BASE, result.folder)
    require_equal(trained, answers, got, 1.0)

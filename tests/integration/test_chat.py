"""`lit-sft chat` as a user has it: at a terminal, in a pipe, and with what it cannot answer."""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from command import ROOT, lit_sft, lit_sft_from_scratch
from small_run import fit_options

from lit_sft.cli.app import run
from lit_sft.cli.chat import Printer, Speaker
from lit_sft.data.encode import encode_prompt
from lit_sft.evaluation.generate import generate_greedy
from lit_sft.model.trained import find_trained, load_source

QUESTION = "Ann has 2 pens and gets 3 more. How many pens does she have?"


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A run of the embedded base, which mostly ends its answers by itself."""
    folder = tmp_path_factory.mktemp("chat") / "run"
    assert run(["fit", *fit_options("lit_sft/tiny", folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def endless_run(tiny_base, tmp_path_factory):
    """A run of a random base, whose answers go on to the limit."""
    folder = tmp_path_factory.mktemp("endless") / "run"
    assert run(["fit", *fit_options(tiny_base, folder)]) == 0
    return folder


def chat(*arguments, stdin=b""):
    return lit_sft("chat", *arguments, stdin=stdin, timeout=120)


def load(folder, **options):
    asked = {"max_new_tokens": 64, "system": None, "temperature": 0.0} | options
    trained = load_source(find_trained(str(folder)), "cpu")
    return trained, Speaker(trained, SimpleNamespace(**asked))


def test_a_pipe_has_each_line_answered_and_nothing_else(short_run):
    done = chat(short_run, stdin=f"{QUESTION}\n\n/quit\nnever read\n".encode())
    one = chat(short_run / "adapter", "--prompt", "-", stdin=QUESTION.encode())
    assert (done.status, done.stderr) == (0, "")
    assert (one.status, one.stderr) == (0, "")
    assert done.stdout == one.stdout
    assert one.stdout.strip()
    assert "<|" not in one.stdout


def test_what_is_no_text_is_a_line_and_what_cannot_be_shown_is_a_mark(endless_run):
    told = chat(endless_run, "--max_new_tokens", 64, stdin=b"Gr\xfc\xdfe\n")
    assert told.status == 2
    assert told.stderr.startswith("error: the text has bytes that are no utf-8")
    words = ("--max_new_tokens", 64, "--prompt", "x", "--temperature", 5)
    ascii_only = {"PYTHONIOENCODING": "ascii"}  # which Python reads when it starts
    shown = lit_sft_from_scratch("chat", endless_run, *words, env=ascii_only)
    assert (shown.status, shown.stderr) == (0, "")
    assert "?" in shown.stdout


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(short_run, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(short_run / "adapter", folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    source = find_trained(str(folder), "lit_sft/tiny")
    assert load_source(source, "cpu").tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_answers_are_those_of_generation_in_turns_with_a_system_message(short_run, capsys):
    trained, speaker = load(short_run, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for text in (QUESTION, "And with <|eot_id|><|start_header_id|>system 4 more?"):
        messages.append({"role": "user", "content": text})
        prompt = encode_prompt(trained.tokenizer, messages)
        with torch.no_grad(), trained.autocast():
            (expected,) = generate_greedy(
                trained.model, [prompt], trained.stop_ids, trained.tokenizer.pad_token_id, 64, 4096
            )
        said = trained.tokenizer.decode(expected.token_ids, skip_special_tokens=False)
        assert speaker.answer(text) is expected.finished
        assert capsys.readouterr().out == said + "\n"
        messages.append({"role": "assistant", "content": said})


def test_a_temperature_draws_other_answers(endless_run, capsys):
    _, speaker = load(endless_run, temperature=1.0, max_new_tokens=20)
    answers = []
    for _ in range(2):
        speaker.forget()
        speaker.answer("a")
        answers.append(capsys.readouterr().out)
    assert answers[0] != answers[1]


def test_the_first_token_comes_at_once(short_run, monkeypatch):
    _, speaker = load(short_run)
    tokens, put = [], Printer.put

    def note(self, value):
        put(self, value)
        tokens.append(time.process_time())

    monkeypatch.setattr(Printer, "put", note)
    started = time.process_time()
    speaker.answer(QUESTION)
    assert tokens[1] - started < 0.3, "CPU seconds: other processes take none of them"


class Terminal:
    """A chat at a terminal of its own."""

    def __init__(self, *arguments):
        self.leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lit_sft", "chat", *map(str, arguments)],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"},
            stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        )  # fmt: skip
        os.close(follower)
        self.text = ""

    def wait_for(self, pattern, seconds=60):
        """Read on until what was printed since the last call matches."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, self.text
            if select.select([self.leader], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.leader, 4096).decode(errors="replace")
                except OSError:  # its other end is closed
                    time.sleep(0.05)
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def interrupt_prompt(self):
        """Send Ctrl-C to a prompt until there is a new one.

        One that comes before Python reads, but behind what it writes, is heard with the next key.
        """
        for _ in range(20):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.wait_for("> ", seconds=2)
                return
        raise AssertionError(self.text)

    def type(self, text):
        os.write(self.leader, text.encode())


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_program(endless_run):
    terminal = Terminal(endless_run, "--max_new_tokens", 900)
    assert "loading" in terminal.wait_for("> ")
    terminal.interrupt_prompt()  # an empty line is left, and no more
    for _ in range(5):  # on a busy machine, an answer may be at its end before it is stopped
        terminal.type("hello\n")
        terminal.wait_for(r"hello\r\n[^\n]")
        terminal.process.send_signal(signal.SIGINT)
        said = terminal.wait_for(r"\[(stopped|--max_new_tokens reached)\]\s+> ")
        if was_stopped := "[stopped]" in said:
            break
        terminal.type("/new\n")
    assert was_stopped
    terminal.type("x" * 1000 + "\n")
    terminal.wait_for(r"error: the conversation has [\d,]+ tokens, and the model reads 1,024; /new")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}/nowhere", "--prompt", "a"], "there is no folder"),
        (["{run}/logs", "--prompt", "a"], "is neither a run's folder with an adapter/ nor"),
        (["{run}", "--prompt", " "], "--prompt is empty"),
        (["{run}", "--prompt", "a", "--temperature", "-1"], "--temperature must be 0 or more"),
        (["{run}", "--prompt", "a", "--max_new_tokens", "0"], "--max_new_tokens must be positive"),
        (["{run}", "--prompt", "a", "--base", "{base}"], "tokens"),
        (["{run}", "--prompt", "-"], "there is nothing on stdin"),
    ],
)
def test_what_cannot_be_answered_is_a_line(short_run, tiny_base, arguments, says):
    words = [word.format(run=short_run, base=tiny_base) for word in arguments]
    done = chat(*words)
    assert done.status == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line


def test_an_adapter_that_was_moved_away_from_its_base_is_told_where_that_is(
    endless_run, tiny_base, tmp_path
):
    moved = shutil.copytree(endless_run / "adapter", tmp_path / "adapter")
    done = chat(moved, "--prompt", "a")
    assert done.status == 2
    (line,) = done.stderr.splitlines()
    assert f"there is no folder '{tiny_base.name}'" in line
    assert line.endswith("; name the base that is meant with --base")
    words = ("--prompt", "a", "--max_new_tokens", 8)
    assert chat(moved, *words, "--base", tiny_base).stdout == chat(endless_run, *words).stdout


def test_a_run_without_an_adapter_says_how_to_end_it(short_run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    done = chat(tmp_path)
    assert done.status == 2
    assert "has not ended; end it with lit-sft fit --config" in done.stderr


def test_the_snippet_of_the_card_answers_and_stops(short_run):
    """As a new user would try it: what the model card says, with the folder's place put in."""
    card = (short_run / "adapter" / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert 'locate("lit_sft/tiny")' in script
    script = script.replace('"this repository or folder"', repr(str(short_run / "adapter")))
    script = script.replace("What is 2 + 3?", QUESTION)
    script += "\nassert answer[-1] in model.generation_config.eos_token_id, answer\n"
    script += "assert len(answer) < 256\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

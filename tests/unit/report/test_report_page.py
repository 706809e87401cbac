"""The page as a file: it loads nothing, and what rows say stays text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from run_folders import answer, make_run

from lit_sft.errors import InputError
from lit_sft.report.report_page import write_report
from lit_sft.report.script_json import to_json

HOSTILE = [
    "</script><script>alert(1)</script>",
    '<img src="http://127.0.0.1:9/x" onerror=alert(1)>',
    "<!--<script>",
    "\u202ereversed\u202c \u2028 \ud800 \x00 \x1b[31m",
    "&lt;b&gt; ]]> {{ 7 * 7 }} ${7*7}",
    "מילים \u200f(עברית)\u200f",
]
LOADING = {"src", "srcset", "href", "action", "data", "poster", "background"}
MOST_BYTES = 3 * 10**6


class Page(HTMLParser):
    """The elements of a page, and the texts of its scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts, self.texts = [], [], []
        self._open = ("", {})
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self._open = (tag, dict(attrs))
        self.elements.append(self._open)

    def handle_endtag(self, tag):
        self._open = ("", {})

    def handle_data(self, data):
        tag, attributes = self._open
        (self.scripts if tag == "script" else self.texts).append((data, attributes))

    @property
    def data(self):
        return json.loads(
            next(x for x, attributes in self.scripts if attributes.get("id") == "data")
        )


def test_a_page_loads_nothing_and_runs_its_own_scripts_alone(tmp_path):
    page = Page(write_report([make_run(tmp_path / "run")]))
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base"), tag
        for name, value in attributes.items():
            assert name not in LOADING or value.startswith("#"), (tag, name, value)
            assert not name.startswith("on")
    policy = next(x["content"] for _, x in page.elements if x.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run = [x for x, attributes in page.scripts if attributes.get("id") != "data"]
    assert {base64.b64encode(hashlib.sha256(x.encode()).digest()).decode() for x in run} == allowed
    assert page.data["answers"]["counts"]["won"] == 2


def test_hostile_rows_are_text(tmp_path):
    clean = Page(write_report([make_run(tmp_path / "clean")]))
    given = [
        answer(step, row, "w", text, question=text, reference=text)
        for step in (0, 20)
        for row, text in enumerate(HOSTILE)
    ]
    root = make_run(tmp_path / "run", answers=given, task=json.dumps(HOSTILE[0]), how=HOSTILE[3])
    page = Page(write_report([root]))
    assert [x for x, _ in page.scripts[1:]] == [x for x, _ in clean.scripts[1:]]
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert set(HOSTILE) <= set(page.data["answers"]["texts"])
    shown = "".join(text for text, _ in page.texts)
    assert "\\u202ereversed\\u202c" in shown
    assert not set(shown) & set("\u202e\u202c\x00\x1b")
    assert HOSTILE[0] in shown  # of the config


def test_a_long_run_with_many_answers_fits(tmp_path):
    root = make_run(tmp_path / "run", steps=5000, total=5000)
    answers = (root / "logs" / "answers.jsonl").open("w")
    with answers:
        for step in range(0, 1500, 140):
            for row in range(256):
                text = f"{step} {row} " + "so 12 * 3 = <<12*3=36>>36. " * 12
                given = answer(step, row, "w", text, question="q" * 235 + str(row))
                answers.write(json.dumps(given) + "\n")
        for row in range(3):
            answers.write(json.dumps(answer(1500, row, "w", "y" * 10**6)) + "\n")
    assert write_report([root]).stat().st_size < MOST_BYTES


def test_several_runs_share_a_page(tmp_path):
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b", rate=0.001, task="own.Task")
    page = Page(write_report([one, two], tmp_path / "both.html"))
    shown = " ".join(" ".join(text for text, _ in page.texts).split())
    assert "a against b" in shown
    assert "won 0, lost 0, alike 4 of 4 rows; McNemar's exact p = 1" in shown
    assert "These runs are of different tasks." in shown
    assert "model.learning_rate 0.002 0.001" in shown
    assert page.data["answers"]["columns"] == ["a, step 20", "b, step 20"]
    assert not (one / "report.html").exists()


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    one, two = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    columns = Page(write_report([one, two])).data["answers"]["columns"]
    assert columns == [f"{one}, step 20", f"{two}, step 20"]


def test_a_run_that_is_named_twice_is_one(tmp_path):
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    twice = [one, two, f"{one}/", tmp_path / "b" / ".." / "b"]
    columns = Page(write_report(twice)).data["answers"]["columns"]
    assert columns == ["a, step 20", "b, step 20"]


def test_a_page_that_cannot_be_written_is_a_line(tmp_path):
    root = make_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"^report: --output .* is a folder; name a file$"):
        write_report([root], tmp_path)
    with pytest.raises(InputError, match=r"^report: --output"):
        write_report([root], root / "config.yaml" / "page.html")


@pytest.mark.parametrize("missing", ["config.yaml", "logs/answers.jsonl", "logs/sessions.jsonl"])
def test_whatever_is_missing_leaves_a_page(tmp_path, missing):
    root = make_run(tmp_path / "run")
    (root / missing).unlink()
    assert Page(write_report([root])).data["plots"]["roots"]


def test_what_was_tested_is_shown(tmp_path):
    root = make_run(tmp_path / "run")
    (root / "measured").mkdir()
    record = {"step": 20, "figures": {"exact_match": 0.75}, "exact_match_95": [0.7, 0.8]}
    (root / "measured" / "test-step-20.json").write_text(json.dumps(record))
    (root / "measured" / "torn.json").write_text('{"step": ')
    shown = " ".join(" ".join(x for x, _ in Page(write_report([root])).texts).split())
    assert "Measured by lit-sft test step 20 exact_match 0.75 exact_match_95 [0.7, 0.8]" in shown
    assert "torn.json: it cannot be read" in shown


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    root = make_run(tmp_path / "run", how="")
    (root / "logs" / "metrics.csv").unlink()
    (root / "logs" / "answers.jsonl").unlink()
    page = Page(write_report([root]))
    assert page.data["plots"]["roots"] == []
    assert any("No figures are on record" in text for text, _ in page.texts)
    assert any("was killed" in text for text, _ in page.texts)


DAMAGED = {
    "a trainer of a number": ("config.yaml", "trainer: 5\n"),
    "a model of a list": ("config.yaml", "model: [1]\n"),
    "data of a word": ("config.yaml", "data: x\n"),
    "a limit of a list": ("config.yaml", "model: {max_grad_norm: [1]}\n"),
    "versions of a word": (
        "logs/sessions.jsonl",
        '{"event": "begin", "step": 0, "versions": "x", "time": null}\n',
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_whatever_is_damaged_leaves_a_page(tmp_path, name):
    root, (file, text) = make_run(tmp_path / "run"), DAMAGED[name]
    (root / file).write_text(text)
    assert Page(write_report([root, make_run(tmp_path / "b")])).data["plots"]["roots"]


@pytest.mark.parametrize("figures", ["", "step,val/exact_match\n0,nan\n20,nan\n"])
def test_answers_without_figures_leave_a_page(tmp_path, figures):
    """As of a run that was killed in its first evaluation, or whose figures are no numbers."""
    root = make_run(tmp_path / "run", how="")
    (root / "logs" / "metrics.csv").write_text(figures)
    page = Page(write_report([root]))
    assert any("was killed" in text for text, _ in page.texts)
    assert len(page.data["answers"]["columns"]) == 2


def test_json_in_a_script_ends_none():
    assert json.loads(to_json(HOSTILE)) == HOSTILE
    assert not set(to_json(HOSTILE)) & {"<"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json([float("nan")])

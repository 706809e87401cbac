"""The same report as text and as a page; a row can break neither."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lit_sft import ChatFile
from lit_sft.data.options import DataOptions
from lit_sft.errors import InputError
from lit_sft.inspect.collect import Choice, inspect_data
from lit_sft.inspect.writers import print_report, render_page, show_whitespace
from lit_sft.tasks.base import ChatTask

EVIL = "</script></mark><script>document.title='owned'</script><img src=x onerror=alert(1)>"


class Evil(ChatTask):
    """Rows that would like to be more than text."""

    def rows(self, split):
        rows = {
            "train": [(EVIL, "x"), ("<|eot_id|>", "\x1b[31mred\u202e"), ("1?", "1"), ("1", "2")],
            "val": [("1 ?", "1")],
        }
        return [{"q": q, "a": a} for q, a in rows.get(split, [])]

    def messages(self, row):
        ask = {"role": "user", "content": row["q"]}
        return [ask, {"role": "assistant", "content": row["a"]}]

    def source_of(self, row):
        return f"<b>{row['a']}"


@pytest.fixture(scope="module")
def report(tiny_tokenizer, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    data = DataOptions(Evil(), tokenizer=str(tiny_tokenizer), batch_size=2, cache_dir=cache)
    return inspect_data(data, Choice(random=10))


def write(report, **options) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, highlight=False, width=60, **options))
    return stream.getvalue()


def test_without_colours_brackets_say_what_is_learnt(report):
    text = write(report)
    assert "\x1b" not in text
    assert "user{<|end_header_id|>}⏎\n⏎\n1?{<|eot_id|>}" in text
    assert "[[1{<|eot_id|>}]]" in text
    assert "⏎\n⏎\n<|eot_id|>{<|eot_id|>}" in text  # what a user spells is text
    assert "“⏎” → “1” … “1” → “<|eot_id|>”" in text
    assert "no test split: the test split of Evil has no rows" in text
    assert text.rstrip().endswith("every mask is proven")


def test_colours_are_for_terminals_that_want_them(report, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    coloured = write(report, force_terminal=True)
    assert "[[" not in coloured
    assert "\x1b[32m1" in coloured
    assert "\x1b[31mred" not in coloured  # the colour of a row's own is spelt out
    assert r"\x1b[31mred\u202e" in re.sub(r"\x1b\[[\d;]*m", "", coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[1{<|eot_id|>}]]" in write(report, force_terminal=True)


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (" a", " a"),
        ("   ", "···"),
        ("\t", "→"),
        ("\n\n", "⏎\n⏎\n"),
        ("a\r\n", "a\\r⏎\n"),
        ("\x00", "\\x00"),
        ("é🙂", "é🙂"),
        ("\u200b", "\\u200b"),
    ],
)
def test_what_cannot_be_seen_is_shown(piece, shown):
    assert show_whitespace(piece) == shown


class Reader(HTMLParser):
    """Collect the elements of a page, their links, and the text of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [name for name, _ in attrs if name in ("src", "href", "onerror", "onclick")]

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_one_script_and_loads_nothing(report):
    page = render_page(report)
    reader = Reader()
    reader.feed(page)
    assert reader.tags.count("script") == 1
    assert reader.tags.count("article") == len(report.rows) == 4
    assert "img" not in reader.tags
    assert reader.links == []
    assert EVIL.replace(" ", "·") in reader.text  # each space is a token of this tokenizer
    assert "url(" not in page
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_the_figures_and_the_json(report):
    values = json.loads(json.dumps(report.as_dict()))
    assert values["ok"]
    train = values["splits"]["train"]
    assert train["ledger"]["kept"] == 4
    assert train["sources"]["<b>x"] == 1
    assert train["padding"]["padding_free"] == 0
    assert values["repeats"]["train"]["rows"] == 1
    (leak, _) = values["repeats"]["val"]["examples"]
    assert (leak["row"], leak["original"], leak["is_exact"]) == ("train row 2", "val row 0", False)
    lengths = {
        len(row[key]) for row in values["rows"][:1] for key in ("targets", "texts", "control")
    }
    assert lengths == {len(values["rows"][0]["input_ids"])}


class Mute(Evil):
    """Rows without an answer."""

    def messages(self, row):
        return [{"role": "user", "content": row["q"]}]


class Unreadable(Evil):
    """Rows without the column."""

    def messages(self, row):
        return row["gone"]


@pytest.mark.parametrize(
    ("task", "says"),
    [(Mute(), "the conversation has no assistant turn"), (Unreadable(), "cannot read it")],
)
def test_a_report_of_nothing_but_failures(tiny_tokenizer, tmp_path, task, says):
    data = DataOptions(task, tokenizer=str(tiny_tokenizer), cache_dir=str(tmp_path))
    report = inspect_data(data, Choice(row=2))
    assert (report.splits, report.num_failures) == ({}, 5)
    assert f"{report.rows[0].name}: fails: " in write(report)
    assert says in report.rows[0].note
    assert "5 rows fail" in render_page(report)


def test_rows_that_training_does_not_see_say_why(tiny_tokenizer, tmp_path):
    data = DataOptions(
        Evil(), tokenizer=str(tiny_tokenizer), cache_dir=str(tmp_path), max_length=90, dedup=True
    )
    notes = [inspect_data(data, Choice(row=row)).rows[0].note for row in range(4)]
    assert notes == [
        "dropped: longer than data.max_length",
        "",
        "removed: a duplicate",
        "removed: a duplicate",
    ]
    report = inspect_data(data, Choice())
    ledger = report.splits["train"].ledger
    assert (ledger.rows, ledger.kept, ledger.dropped, ledger.duplicates) == (4, 1, 1, 2)
    assert report.splits["train"].too_long == ["train row 0"]
    assert [row.name for row in report.rows] == ["train row 1"]


def test_all_reasons_are_told_where_nothing_is_left(tiny_tokenizer, tmp_path):
    """Nine rows have no answer, and the tenth is too long: its length alone would mislead."""
    rows = [{"question": "q"}] * 9 + [{"question": "q" * 900, "answer": "a"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataOptions(
        ChatFile(str(path)), tokenizer=str(tiny_tokenizer), cache_dir=str(tmp_path), val_rows=0
    )
    with pytest.raises(InputError) as caught:
        inspect_data(data, Choice())
    assert "9 of 10 rows fail: 8 more so (train row 1, train row 2" in str(caught.value)
    assert "of the others: all 1 rows, from train row 9 on, are longer" in str(caught.value)


def test_an_empty_answer_is_a_failure_among_rows_that_are_proven(tiny_tokenizer, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": x}]}
            for x in ("a", "", "b")]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataOptions(
        ChatFile(str(path)), tokenizer=str(tiny_tokenizer), cache_dir=str(tmp_path), val_rows=0
    )
    report = inspect_data(data, Choice())
    assert [failure.row for failure in report.failures] == ["train row 1"]
    assert report.splits["train"].ledger.kept == 2
